"""Licences, and which model stands under which: some stand under two at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import ClassVar

from labkit.errors import LabError
from labkit.landscape.tables import LANDSCAPE, UNKNOWN, age_text, read_table, shown

ANSWERS = ("yes", "conditional", "no", "")


@dataclass(frozen=True)
class Licence:
    """One licence. The three answers are yes, conditional, no, or "" where the text was not read for it.

    A reading aid, not legal advice: `obligations` is one line of ours, `url` is the text that counts.
    """

    expires_days: ClassVar[int | None] = 180

    licence_id: str
    name: str
    obligations: str
    url: str
    source_url: str
    basis: str
    commercial_use: str = ""
    redistribution: str = ""
    outputs_may_train: str = ""
    source_version: str = ""
    seen: date | None = None

    def __post_init__(self):
        for value in (self.commercial_use, self.redistribution, self.outputs_may_train):
            if value not in ANSWERS:
                raise ValueError(f"{value!r} is not one of yes, conditional, no or blank")


@dataclass(frozen=True)
class ModelLicence:
    """One licence that applies to one checkpoint, and where that was read."""

    expires_days: ClassVar[int | None] = 180

    repo_id: str
    licence_id: str
    source_url: str
    basis: str
    seen: date | None = None


def load_licences(path: Path = LANDSCAPE / "licences.csv") -> tuple[Licence, ...]:
    return read_table(path, Licence, key="licence_id")


def load_model_licences(path: Path = LANDSCAPE / "model_licence.csv") -> tuple[ModelLicence, ...]:
    return read_table(path, ModelLicence)


@cache
def _by_model() -> dict[str, tuple[Licence, ...]]:
    licences = {row.licence_id: row for row in load_licences()}
    found: dict[str, tuple[Licence, ...]] = {}
    for number, row in enumerate(load_model_licences(), start=2):
        if row.licence_id not in licences:
            raise LabError(
                f"there is no licence called {row.licence_id!r}",
                "add it to licences.csv, with its URL",
                where=f"model_licence.csv row {number}, column licence_id",
            )
        found[row.repo_id] = (*found.get(row.repo_id, ()), licences[row.licence_id])
    return found


@cache
def _facts() -> dict[str, tuple[ModelLicence, ...]]:
    found: dict[str, tuple[ModelLicence, ...]] = {}
    for row in load_model_licences():
        found[row.repo_id] = (*found.get(row.repo_id, ()), row)
    return found


def licence_facts(repo_id: str) -> tuple[ModelLicence, ...]:
    """Which licences apply to the checkpoint, with where and when each was read."""
    return _facts().get(repo_id, ())


def licences_of(repo_id: str) -> tuple[Licence, ...]:
    """Every licence that applies to the checkpoint; none means that none was verified, never that there is none."""
    return _by_model().get(repo_id, ())


def licence_names(repo_id: str) -> str:
    return " + ".join(licence.name for licence in licences_of(repo_id)) or UNKNOWN


def commercial_use(repo_id: str) -> str:
    """The strictest answer among the licences that apply: no before unknown before conditional before yes."""
    answers = [licence.commercial_use or UNKNOWN for licence in licences_of(repo_id)] or [UNKNOWN]
    return next(answer for answer in ("no", UNKNOWN, "conditional", "yes") if answer in answers)


def licence_cards(repo_ids: Sequence[str]) -> list[dict[str, str]]:
    """One card for each licence of each checkpoint: what it asks, its answers, its text, and how old the reading is."""
    return [card for repo_id in repo_ids for card in _cards(repo_id)]


def _cards(repo_id: str) -> list[dict[str, str]]:
    facts = {fact.licence_id: fact for fact in licence_facts(repo_id)}
    answers = ("name", "commercial_use", "redistribution", "outputs_may_train", "obligations", "url")
    names = ("licence", "commercial use", "redistribution", "outputs may train", "obligations", "text")
    rows = [([getattr(row, key) for key in answers], age_text(facts[row.licence_id])) for row in licences_of(repo_id)]
    rows = rows or [(["", "", "", "", "none was read, and that is no permission", ""], UNKNOWN)]
    cells = [dict(zip(names, map(shown, values), strict=True)) | {"age": age} for values, age in rows]
    return [{"model": repo_id} | cell for cell in cells]
