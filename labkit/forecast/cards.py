"""Which published peak and which price belong to a route, and both in words, with source and date."""

from datetime import date

from labkit.landscape.gpu_peaks import GpuPeak, load_peaks
from labkit.landscape.prices import Price, load_prices
from labkit.landscape.tables import age_text
from labkit.routes import Route


def price_of(route: Route) -> Price | None:
    """The newest row with the route's hourly price, for a route that is paid or lent; None for one's own machine, and
    where no row has that price."""
    rows = [row for row in load_prices() if row.usd_per_hour == route.hourly_usd]
    dated = sorted(rows, key=lambda row: row.seen or date.min)
    return dated[-1] if dated and route.route != "local_cpu" else None


def peak_of(price: Price | None) -> GpuPeak | None:
    """The card of an offer, by the words and the memory in its row; None for a card whose peaks nobody looked up."""
    if price is None:
        return None
    named = set(price.gpu.replace("(", " ").replace(",", " ").split())
    found = [row for row in load_peaks() if set(row.words.split()) <= named and row.vram_gb == price.vram_gb]
    return found[0] if found else None


def price_text(price: Price) -> str:
    """An offer in one line, with its source, its date and its age."""
    cost = f"${price.usd_per_hour:.2f} an hour" if price.usd_per_hour else "free"
    seen = f"seen {price.seen}" if price.seen else "without a date"
    return f"{price.provider}, {price.gpu}, {cost}, {seen} at {price.source_url} ({age_text(price)}, {price.basis})"


def peak_text(peak: GpuPeak) -> str:
    rates = f"{peak.tflops_16bit:g} TFLOP/s in 16 bit, {peak.gb_per_second:g} GB/s"
    return f"{peak.card}: at most {rates}, seen {peak.seen} at {peak.source_url} ({peak.basis})"
