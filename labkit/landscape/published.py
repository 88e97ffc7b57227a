"""Sizes that others measured and published, beside what our arithmetic says: the estimate's own test."""

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import ClassVar

from labkit.landscape.memory import GB, GIB, memory_estimate
from labkit.landscape.tables import LANDSCAPE, read_table

UNITS = {"GB": GB, "GiB": GIB}


@dataclass(frozen=True)
class PublishedSize:
    """One published measurement. `size` is in `unit` (GB = 10^9, GiB = 2^30 bytes); no context means a file."""

    expires_days: ClassVar[int | None] = None

    repo_id: str
    format: str
    size: float
    unit: str
    what: str
    source_url: str
    basis: str
    context: int | None = None
    seen: date | None = None

    def __post_init__(self):
        if self.unit not in UNITS:
            raise ValueError(f"unit is {self.unit!r}, not one of {', '.join(UNITS)}")


def load_published(path: Path = LANDSCAPE / "published_memory.csv") -> tuple[PublishedSize, ...]:
    return read_table(path, PublishedSize)


def comparison_rows() -> list[dict[str, str]]:
    """Computed beside published, one row per measurement, the difference in percent of the published figure.

    Computed is the weights of a file, weights and cache on a GPU: torch's figures leave the CUDA context out, so the
    overhead is left out here as well.
    """
    return [_compare(row) for row in load_published()]


def _compare(row: PublishedSize) -> dict[str, str]:
    estimate = memory_estimate(row.repo_id, row.format, row.context or 1)
    held = estimate.weights + (estimate.kv_cache if row.context else 0)
    computed = held / UNITS[row.unit]
    return {
        "model": row.repo_id.split("/")[-1],
        "format": estimate.quant,
        "context": f"{row.context:,}" if row.context else "file",
        "computed": f"{computed:.2f} {row.unit}",
        "published": f"{row.size:.2f} {row.unit}",
        "difference": f"{100 * (computed / row.size - 1):+.1f} %",
        "what was measured": row.what,
        "source": row.source_url,
    }
