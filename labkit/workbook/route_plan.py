"""Lesson 13.1's artifacts: what is written depends on the route and on what the machine turned out to have."""

from datetime import UTC, datetime

from labkit.environment import EnvironmentReport, in_kaggle
from labkit.evidence import Pack
from labkit.landscape.prices import load_prices
from labkit.landscape.tables import age_text
from labkit.layout import display_path
from labkit.routes import (
    Route,
    RouteDecision,
    colab_notes_markdown,
    compute_route_markdown,
    gpu_plan_markdown,
    planned_stop,
)
from labkit.workbook.mirror import FolderCopy
from labkit.workbook.session import second_copy

LESSON = "13.1"
ROUTE_PLAN, GPU_PLAN, COLAB_NOTES = "compute_route.md", "gpu_plan.md", "colab_notes.md"


def write_route_plan(pack: Pack, route: Route, decision: RouteDecision, report: EnvironmentReport) -> tuple[str, ...]:
    """Write compute_route.md and, where the route asks for it, gpu_plan.md or colab_notes.md; return their names.

    A stop time once written is kept.
    """
    gpu = f"{report.gpu}, {report.vram_gib}" if report.cuda else f"none seen ({report.device_reason})"
    stop_time = ""
    names = [ROUTE_PLAN]
    if route.route == "rented_gpu":
        earlier = pack.path(GPU_PLAN)
        earlier_text = earlier.read_text(encoding="utf-8") if earlier.is_file() else ""
        stop_time = planned_stop(route, datetime.now(UTC), earlier_text)
        pack.write_text(GPU_PLAN, gpu_plan_markdown(route, stop_time, gpu, price_row(route.hourly_usd)), LESSON)
        names.append(GPU_PLAN)
    if route.route == "free_colab":
        host = "Google Colab" if report.colab else "Kaggle" if in_kaggle() else ""
        copy = second_copy(pack) if host else None
        saved = copy.where if copy else "nowhere else: this machine is not taken away"
        in_drive = isinstance(copy, FolderCopy)
        notes = colab_notes_markdown(route, host, gpu, display_path(pack.folder), saved, in_drive)
        pack.write_text(COLAB_NOTES, notes, LESSON)
        names.append(COLAB_NOTES)
    text = compute_route_markdown(route, decision, report.device, report.device_reason, stop_time)
    pack.write_text(ROUTE_PLAN, text, LESSON)
    return tuple(names)


def price_row(hourly_usd: float) -> str:
    """The newest offer at this price, with its source, date and age: where the route's hourly price comes from."""
    offers = [row for row in load_prices() if row.usd_per_hour == hourly_usd and row.seen]
    if not offers:
        return "no offer in data/landscape/prices.csv has this price; ask your provider and change hourly_usd"
    row = max(offers, key=lambda offer: offer.seen)
    return (
        f"{row.provider}, {row.gpu}, {row.vram_gb} GB, ${row.usd_per_hour:.2f} an hour, seen {row.seen} at "
        f"{row.source_url} (age {age_text(row)})"
    )
