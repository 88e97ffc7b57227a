"""What an hour of a GPU cost, where and when that was seen. Prices move: a row older than 30 days is only history."""

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import ClassVar

from labkit.landscape.tables import LANDSCAPE, age_text, read_table


@dataclass(frozen=True)
class Price:
    """One offer. `vram_gb` is the card's nominal memory; `collected_via` is where the row was read, if not there."""

    expires_days: ClassVar[int | None] = 30

    provider: str
    gpu: str
    vram_gb: int
    usd_per_hour: float
    provisioning: str
    source_url: str
    basis: str
    collected_via: str = ""
    seen: date | None = None


def load_prices(path: Path = LANDSCAPE / "prices.csv") -> tuple[Price, ...]:
    return read_table(path, Price)


def price_table(today: date | None = None) -> list[dict[str, str]]:
    """One row of text per offer, cheapest first, with the age of the row."""
    return [
        {
            "provider": row.provider,
            "gpu": row.gpu,
            "vram (GB)": str(row.vram_gb),
            "usd/hour": f"{row.usd_per_hour:.2f}",
            "age": age_text(row, today),
            "source": row.source_url,
        }
        for row in sorted(load_prices(), key=lambda row: row.usd_per_hour)
    ]


def cards() -> dict[str, int]:
    """The cards of the table by name, with their nominal memory in GB (a driver may report a little more or less)."""
    rows = sorted(load_prices(), key=lambda row: row.vram_gb)
    return {f"{row.gpu.split(' (')[0]}, {row.vram_gb} GB": row.vram_gb for row in rows}
