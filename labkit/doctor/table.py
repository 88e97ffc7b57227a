"""The symptoms: how each is recognised, what to look at first, what to do when that does not help."""

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import ClassVar

from labkit.errors import LabError
from labkit.landscape.tables import LANDSCAPE, read_table


@dataclass(frozen=True)
class Symptom:
    """One row. `words` are what people type, `checks` the names of checks (labkit.doctor.examine.CHECKS)."""

    expires_days: ClassVar[int | None] = 180

    symptom: str
    title: str
    words: tuple[str, ...]
    first_check: str
    fallback: str
    checks: tuple[str, ...]
    source_url: str
    basis: str
    seen: date | None = None


def load_symptoms(path: Path = LANDSCAPE / "troubleshooting.csv") -> tuple[Symptom, ...]:
    return read_table(path, Symptom, key="symptom")


def find_symptoms(text: str = "") -> tuple[Symptom, ...]:
    """The symptoms that `text` speaks of, the best match first; all of them for no text.

    A name or a title is that symptom alone. Other text, such as an error message, is searched for the words of each
    row; longer words count more, because "memory" says less than "cuda out of memory".
    Raises LabError naming the symptoms when nothing fits.
    """
    rows, wanted = load_symptoms(), " ".join(text.lower().replace("-", " ").split())
    if not wanted:
        return rows
    exact = tuple(row for row in rows if wanted in (row.symptom.replace("-", " "), row.title.lower()))
    if exact:
        return exact
    scores = {row.symptom: sum(len(word) for word in row.words if word.lower() in wanted) for row in rows}
    found = sorted((row for row in rows if scores[row.symptom]), key=lambda row: -scores[row.symptom])
    if not found:
        names = ", ".join(row.symptom for row in rows)
        raise LabError(f"no symptom fits {text!r}", f"name one of {names}, or leave it out to check all")
    best = scores[found[0].symptom]
    return tuple(row for row in found if 2 * scores[row.symptom] >= best)
