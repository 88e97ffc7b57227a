"""What a free Colab session brings: package versions as Colab publishes them, and the pairs that quarrel.

Made by data/landscape/colab_runtime.py. The lists are updated every few weeks: a row older than 60 days is a
reason to look again.
"""

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import ClassVar

from labkit.landscape.tables import LANDSCAPE, read_table

ABSENT = "absent"  # the version of a package that the workbook knows and Colab lacks
RUNTIMES = ("cpu", "gpu")


@dataclass(frozen=True)
class RuntimePackage:
    """One package, by its canonical name, on the runtime cpu, gpu or both."""

    expires_days: ClassVar[int | None] = 60

    package: str
    version: str
    runtime: str
    source_url: str
    seen: date

    def __post_init__(self):
        if self.runtime not in (*RUNTIMES, "both"):
            raise ValueError("runtime is cpu, gpu or both")


def load_runtime(path: Path = LANDSCAPE / "colab_runtime.csv") -> tuple[RuntimePackage, ...]:
    return read_table(path, RuntimePackage)


def preinstalled(runtime: str) -> dict[str, str]:
    """Package to version on the runtime "cpu" or "gpu", without what is absent there."""
    here = (row for row in load_runtime() if row.runtime in (runtime, "both") and row.version != ABSENT)
    return {row.package: row.version for row in here}
