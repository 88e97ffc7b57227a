"""The programs that run a model: what each is for, what it needs, and which kinds of model it runs."""

from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import ClassVar

from labkit.landscape.tables import LANDSCAPE, read_table

STATUS = ("active", "maintenance")


@dataclass(frozen=True)
class Runtime:
    """One runtime. `checked` says what this project did with it, which is not what its maker says of it.

    A runtime in maintenance gets repairs and no new models: it is for what already runs.
    """

    expires_days: ClassVar[int | None] = 90

    runtime: str
    status: str
    use_for: str
    needs: str
    checked: str
    source_url: str
    basis: str
    seen: date | None = None

    def __post_init__(self):
        if self.status not in STATUS:
            raise ValueError(f"status is {self.status!r}, not one of {', '.join(STATUS)}")


@dataclass(frozen=True)
class RuntimeSupport:
    """That a runtime runs models of a type (config.json's model_type), from which version on ("" where unknown).

    `checked_version` is one in which somebody of this project found it.
    """

    expires_days: ClassVar[int | None] = 90

    model_type: str
    runtime: str
    source_url: str
    basis: str
    minimum_version: str = ""
    checked_version: str = ""
    notes: str = ""
    seen: date | None = None


def load_runtimes(path: Path = LANDSCAPE / "runtimes.csv") -> tuple[Runtime, ...]:
    return read_table(path, Runtime, key="runtime")


@cache
def load_runtime_support(path: Path = LANDSCAPE / "runtime_support.csv") -> tuple[RuntimeSupport, ...]:
    return read_table(path, RuntimeSupport)


def support_of(model_type: str | None = None) -> tuple[RuntimeSupport, ...]:
    """What runs models of that type; without a type, every row. No row means unknown, not unsupported."""
    return tuple(row for row in load_runtime_support() if model_type in (None, row.model_type))
