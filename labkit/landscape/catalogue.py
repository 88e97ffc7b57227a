"""Choosing among the checkpoints: by family, language, licence, memory, runtime, modality, context, openness.

A filter keeps a row only where the fact that it asks for is known: what is blank is never taken for a yes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from labkit.errors import LabError
from labkit.landscape.families import load_corrections
from labkit.landscape.licences import commercial_use, licence_facts, licence_names
from labkit.landscape.memory import GB, memory_estimate
from labkit.landscape.models import Model, load_models, names_of
from labkit.landscape.runtimes import RuntimeSupport, support_of
from labkit.landscape.tables import UNKNOWN, age_text, shown, today_utc

OPENNESS = ("full-open", "permissive", "open-weight")
MODALITIES = ("text", "code", "image", "video", "audio")
JAPANESE = ("ja", "japanese")
ALLOWED = ("yes", "conditional")  # a conditional licence allows it, under obligations that the table names


@dataclass(frozen=True)
class Wish:
    """What is asked of a model; "" , None and False ask nothing. `fits_gb` is for `quant` at 4,096 tokens."""

    name: str = ""
    language: str = ""
    commercial: bool = False
    fits_gb: float | None = None
    quant: str = ""
    runtime: str = ""
    modality: str = ""
    context: int | None = None
    openness: str = ""

    def __post_init__(self):
        for name, allowed in (("openness", OPENNESS), ("modality", MODALITIES)):
            if (value := getattr(self, name)) and value.lower() not in allowed:
                raise LabError(f"there is no {name} called {value!r}", f"choose one of {', '.join(allowed)}")
        if self.language and self.language.lower() not in JAPANESE:
            raise LabError(
                f"the table says nothing of the language {self.language!r}",
                "ask for ja; for another language read the model's card",
            )
        for name in ("fits_gb", "context"):
            if (value := getattr(self, name)) is not None and not value > 0:  # so for nan too
                raise LabError(f"{name.removesuffix('_gb')} is {value}", "give a number above 0")


def models_of(name: str = "") -> tuple[Model, ...]:
    """The checkpoints of a family or line called `name` (any case), else those whose name has its words; "" is all.

    Raises LabError for a name that nothing answers to: with the correction where the name is a known error.
    """
    rows, wanted = load_models(), _plain(name)
    named = (
        [row for row in rows if wanted == _plain(row.family)]
        or [row for row in rows if wanted == _plain(row.line)]
        or [row for row in rows if name.strip().lower() in names_of(row)]
        or [row for row in rows if all(_plain(word) in _text(row) for word in name.split())]
    )
    if named:
        return tuple(named)
    known = next((row for row in load_corrections() if wanted in _plain(row.claim)), None)
    families = ", ".join(dict.fromkeys(row.family for row in rows))
    hint = f"{known.claim}? No: {known.correction}" if known else f"choose one of {families}"
    raise LabError(f"there is no family called {name!r}", hint)


def _plain(text: str) -> str:
    return re.sub(r"[\s_-]+", "", text.lower())


def _text(row: Model) -> str:
    return _plain(f"{row.family} {row.line} {row.repo_id} {' '.join(row.aliases)}")


def select(wish: Wish) -> tuple[Model, ...]:
    """The checkpoints that fulfil `wish`, in the table's order. Raises LabError as `models_of` does."""
    wanted = _runtime_name(wish.runtime)
    return tuple(row for row in models_of(wish.name) if _fulfils(row, wish, wanted))


def _fulfils(row: Model, wish: Wish, runtime: str) -> bool:
    checks = (
        not wish.language or row.japanese.startswith(("high", "mid")),
        not wish.commercial or commercial_use(row.repo_id) in ALLOWED,
        not wish.modality or wish.modality.lower() in row.modalities,
        not wish.openness or row.openness == wish.openness.lower(),
        wish.context is None or (row.context_tokens or 0) >= wish.context,
        not runtime or any(found.runtime == runtime for found in support_of(row.model_type)),
    )
    return all(checks) and (wish.fits_gb is None or _fits(row, wish))


def _fits(row: Model, wish: Wish) -> bool:
    total = memory_estimate(row, wish.quant).total
    return total is not None and total <= wish.fits_gb * GB


def _runtime_name(name: str) -> str:
    if not name:
        return ""
    known = tuple(dict.fromkeys(row.runtime for row in support_of()))
    found = [full for full in known if _plain(name) in (_plain(full), _plain(full.split()[0]))]
    if not found:
        raise LabError(f"there is no runtime called {name!r}", f"choose one of {', '.join(known)}")
    return found[0]


def model_table(rows: Sequence[Model], quant: str = "", today: date | None = None) -> list[dict[str, str]]:
    """One row of text per checkpoint for a screen: sizes, memory, licence, age of the facts; blanks say "verify"."""
    return [_table_row(row, quant, today or today_utc()) for row in rows]


def _table_row(row: Model, quant: str, today: date) -> dict[str, str]:
    total = memory_estimate(row, quant).total
    return {
        "model": row.repo_id,
        "line": row.line,
        "kind": row.kind,
        "total (B)": shown(row.params_total_b),
        "active (B)": shown(row.params_active_b if row.kind == "moe" else row.params_total_b),
        "needs (GB)": UNKNOWN if total is None else f"{total / GB:.1f}",
        "context": shown(row.context_tokens),
        "licence": licence_names(row.repo_id),
        "commercial": commercial_use(row.repo_id),
        "openness": shown(row.openness),
        "Japanese": shown(row.japanese),
        "age": age_text(row, today),
        "licence age": _oldest(licence_facts(row.repo_id), today),
        "runtime age": _oldest(support_of(row.model_type), today),
        "source": row.source_url,
    }


def _oldest(rows: Sequence, today: date) -> str:
    return age_text(min(rows, key=lambda row: row.seen or date.min), today) if rows else UNKNOWN


def model_records(rows: Sequence[Model], quant: str = "", today: date | None = None) -> list[dict]:
    """The same for a program: numbers as numbers, null where nobody has checked, each fact group with its age."""
    return [_record(row, quant, today or today_utc()) for row in rows]


def _record(row: Model, quant: str, today: date) -> dict:
    estimate = memory_estimate(row, quant)
    return {
        "model": row.repo_id,
        "family": row.family,
        "line": row.line,
        "kind": row.kind,
        "params_total_b": row.params_total_b,
        "params_active_b": row.params_active_b if row.kind == "moe" else row.params_total_b,
        "context_tokens": row.context_tokens,
        "modalities": list(row.modalities),
        "openness": row.openness or None,
        "japanese": row.japanese or None,
        "quant": estimate.quant,
        "needs_gb": estimate.as_dict()["total_gb"],
        "licences": [fact.licence_id for fact in licence_facts(row.repo_id)],
        "commercial_use": commercial_use(row.repo_id),
        "runtimes": {fact.runtime: fact.minimum_version or None for fact in support_of(row.model_type)},
        "facts": [
            _fact("dimensions", row, today),
            *(_fact("licence", fact, today) for fact in licence_facts(row.repo_id)),
            *(_fact("runtime", fact, today) for fact in support_of(row.model_type)),
        ],
    }


def _fact(group: str, row: Model | RuntimeSupport, today: date) -> dict:
    age = None if row.seen is None else max(0, (today - row.seen).days)
    expired = age_text(row, today).endswith("EXPIRED")
    return {
        "group": group,
        "age_days": age,
        "expired": expired,
        "basis": row.basis,
        "source_url": row.source_url,
    }
