"""Before anything runs: memory against a card, and minutes of the routes."""

import textwrap
from collections.abc import Sequence

from labkit.plots.figure import BLUE, GREEN, GREY, ORANGE, VERMILION, Plot, colours
from labkit.routes import Route

_MEMORY_PARTS = (
    ("weights", "weights", BLUE, ""),
    ("kv_cache", "KV cache", ORANGE, "//"),
    ("activations", "activations", GREEN, "xx"),
    ("overhead", "overhead", GREY, ".."),
)


def memory_bars(estimates: Sequence, card_gib: float | None = None) -> Plot:
    """Memory by part, stacked, in GiB (2^30 bytes); the line is the card's memory.

    `estimates` are MemoryEstimates, in bytes. A part that is None is unknown: the bar is then a lower bound and says
    so, because an unknown must not look like a zero.
    """
    labels = [_memory_label(estimate) for estimate in estimates]
    lines = sum(label.count("\n") + 1 for label in labels)
    figure = Plot(7.6, 0.34 * lines + 0.12 * len(labels) + 1.4)
    axes = figure.subplots()
    places = range(len(labels))
    left = [0.0] * len(labels)
    for key, name, colour, hatch in _MEMORY_PARTS:
        widths = [(getattr(estimate, key) or 0) / 2**30 for estimate in estimates]
        axes.barh(places, widths, left=left, color=colour, hatch=hatch, edgecolor="white", label=name)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    if card_gib is not None:
        axes.axvline(card_gib, color=VERMILION, linestyle="--", label=f"card: {card_gib:g} GiB")
    axes.set_yticks(places, labels)
    axes.set_xlim(right=1.05 * max([*left, card_gib or 0.0], default=1.0))
    axes.invert_yaxis()
    axes.set(xlabel="memory (GiB)", title="what must fit")
    figure.legend(loc="outside lower center", ncols=4, fontsize="small")
    return figure


def _memory_label(estimate) -> str:
    parts = {name: getattr(estimate, key) for key, name, *_ in _MEMORY_PARTS}
    unknown = [name for name, size in parts.items() if size is None]
    total = f"{sum(size for size in parts.values() if size is not None) / 2**30:.1f} GiB"
    note = f"at least {total}, {' and '.join(unknown)} unknown" if unknown else total
    return textwrap.fill(estimate.label, 36) + "\n" + textwrap.fill(note, 36)


def route_minutes(routes: Sequence[Route]) -> Plot:
    """Minutes of work for each lesson, stacked for each route, from the route files."""
    figure = Plot(7.6, 0.5 * len(routes) + 1.7)
    axes = figure.subplots()
    names = [route.title for route in routes]
    left = [0] * len(routes)
    lessons = sorted({number for route in routes for number in route.minutes})
    for number, colour in zip(lessons, colours(len(lessons)), strict=True):
        widths = [route.minutes.get(number, 0) for route in routes]
        bars = axes.barh(names, widths, left=left, color=colour, edgecolor="white", label=number)
        axes.bar_label(bars, [str(width) if width else "" for width in widths], label_type="center", fontsize="small")
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for place, total in enumerate(left):
        axes.text(total, place, f" {total} min", va="center", fontsize="small")
    axes.set_xlim(right=1.15 * max(left, default=1))
    axes.invert_yaxis()
    axes.set(xlabel="minutes of work", title="minutes by lesson and route")
    figure.legend(loc="outside lower center", ncols=max(1, len(lessons)), fontsize="small")
    return figure
