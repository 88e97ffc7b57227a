"""Sizes that others measured and published, beside what our arithmetic says: the estimate's own test."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import ClassVar

from labkit.landscape.memory import GB, GIB, memory_estimate
from labkit.landscape.tables import LANDSCAPE, read_table

UNITS = {"GB": GB, "GiB": GIB}
SHORT = 4096  # tokens: up to here the context counts as short


@dataclass(frozen=True)
class PublishedSize:
    """One published measurement. `size` is in `unit` (GB = 10^9, GiB = 2^30 bytes).

    No context means a file. A prompt means that the figure has the peak of reading it. `excluded` says why a row is no
    measurement that the estimate can be held against.
    """

    expires_days: ClassVar[int | None] = None

    repo_id: str
    format: str
    size: float
    unit: str
    what: str
    source_url: str
    basis: str
    runtime: str = ""
    context: int | None = None
    prompt: int | None = None
    cards: int | None = None
    excluded: str = ""
    notes: str = ""
    seen: date | None = None

    def __post_init__(self):
        if self.unit not in UNITS:
            raise ValueError(f"unit is {self.unit!r}, not one of {', '.join(UNITS)}")

    @property
    def group(self) -> str:
        if self.context is None:
            return "file"
        return "GPU, short context" if self.context <= SHORT else "GPU, long context"


@dataclass(frozen=True)
class Accuracy:
    """How far the estimate is from the published figures of one group, in percent of them."""

    group: str
    rows: int
    median: float
    p90: float
    worst: float


def load_published(path: Path = LANDSCAPE / "published_memory.csv") -> tuple[PublishedSize, ...]:
    return read_table(path, PublishedSize)


def computed_bytes(row: PublishedSize) -> int:
    """What the row's figure should be: the weights of a file; weights and cache on a GPU, with the peak of the prompt
    where the figure has it. torch's figures leave the CUDA context out, so the overhead is left out here as well.
    """
    estimate = memory_estimate(row.repo_id, row.format, row.context or 1, prompt=row.prompt, cards=row.cards or 1)
    size = estimate.weights + (estimate.kv_cache if row.context else 0)
    return size + (estimate.activations if row.prompt else 0)


def difference(row: PublishedSize) -> float:
    """Computed against published, in percent of the published figure."""
    return 100 * (computed_bytes(row) / UNITS[row.unit] / row.size - 1)


def accuracy(rows: Sequence[PublishedSize]) -> tuple[Accuracy, ...]:
    """Absolute differences by group, without the excluded rows."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        if not row.excluded:
            groups.setdefault(row.group, []).append(abs(difference(row)))
    return tuple(Accuracy(name, len(off), statistics.median(off), _p90(off), max(off)) for name, off in groups.items())


def _p90(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=10, method="inclusive")[8] if len(values) > 1 else values[0]


def comparison_rows() -> list[dict[str, str]]:
    """Computed beside published, one row per measurement, the difference in percent of the published figure."""
    return [_compare(row) for row in load_published()]


def _compare(row: PublishedSize) -> dict[str, str]:
    return {
        "model": row.repo_id.split("/")[-1],
        "format": row.format,
        "context": f"{row.context:,}" if row.context else "file",
        "computed": f"{computed_bytes(row) / UNITS[row.unit]:.2f} {row.unit}",
        "published": f"{row.size:.2f} {row.unit}",
        "difference": f"{difference(row):+.1f} %",
        "what was measured": row.what,
        "source": row.source_url,
    }
