"""The families in one sentence each, and the errors about them that older material still repeats."""

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import ClassVar

from labkit.landscape.tables import LANDSCAPE, read_table


@dataclass(frozen=True)
class Family:
    """A line of models. `start_with` is the checkpoint to look at first, a row of models.csv."""

    expires_days: ClassVar[int | None] = None

    family: str
    start_with: str
    summary: str
    basis: str


@dataclass(frozen=True)
class Correction:
    """A claim that is still repeated, what is true instead, and where that stands."""

    expires_days: ClassVar[int | None] = None

    claim: str
    correction: str
    source_url: str
    basis: str
    seen: date | None = None


def load_families(path: Path = LANDSCAPE / "families.csv") -> tuple[Family, ...]:
    return read_table(path, Family, key="family")


def load_corrections(path: Path = LANDSCAPE / "corrections.csv") -> tuple[Correction, ...]:
    return read_table(path, Correction)
