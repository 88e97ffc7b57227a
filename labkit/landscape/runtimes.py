"""The programs that run a model: what each is for, what it needs, and whether this project has run it."""

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import ClassVar

from labkit.landscape.tables import LANDSCAPE, read_table


@dataclass(frozen=True)
class Runtime:
    """One runtime. `checked` says what this project did with it, which is not what its maker says of it."""

    expires_days: ClassVar[int | None] = 90

    runtime: str
    use_for: str
    needs: str
    checked: str
    source_url: str
    basis: str
    seen: date | None = None


def load_runtimes(path: Path = LANDSCAPE / "runtimes.csv") -> tuple[Runtime, ...]:
    return read_table(path, Runtime, key="runtime")
