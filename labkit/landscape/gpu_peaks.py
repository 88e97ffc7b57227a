"""What a card can do at most, as its maker publishes it."""

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import ClassVar

from labkit.landscape.tables import LANDSCAPE, read_table


@dataclass(frozen=True)
class GpuPeak:
    """The published peaks of one card: dense 16-bit tensor products in TFLOP/s, memory in 10^9 bytes per second."""

    expires_days: ClassVar[int | None] = None

    card: str
    words: str
    tflops_16bit: float
    gb_per_second: float
    vram_gb: int
    source_url: str
    basis: str
    seen: date | None = None


def load_peaks(path: Path = LANDSCAPE / "gpu_peaks.csv") -> tuple[GpuPeak, ...]:
    return read_table(path, GpuPeak, key="card")
