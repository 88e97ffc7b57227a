"""Forecasts as rows of text, for a notebook and for the terminal."""

from collections.abc import Callable, Sequence
from textwrap import shorten

from labkit.forecast.predict import LessonForecast, RouteForecast
from labkit.forecast.units import Unit, Work

TOTAL = "all"
MEANING = (
    "Minutes are of computing alone. The range of USD goes from the bill for the computing at best to that for all the "
    "minutes of the route file: a rented machine also costs money while you read."
)


def minutes_text(forecast: LessonForecast | RouteForecast) -> str:
    """ "4.1 (3.2-5.3)" where a value is expected, "1.0-6.2" where only a range can be told."""
    low, expected, high = (_value(forecast, name) for name in ("minutes_low", "minutes", "minutes_high"))
    return f"{low:.1f}-{high:.1f}" if expected is None else f"{expected:.1f} ({low:.1f}-{high:.1f})"


def _value(forecast: LessonForecast | RouteForecast, name: str) -> float | None:
    return forecast.total(name) if isinstance(forecast, RouteForecast) else getattr(forecast, name)


def money_text(low: float, high: float) -> str:
    return "0" if not high else f"{low:.2f}-{high:.2f}"


def _column(route: RouteForecast) -> str:
    return f"{route.route} min{' (verify)' if route.extrapolated else ''}"


def forecast_rows(routes: Sequence[RouteForecast]) -> list[dict[str, str]]:
    """A row for each lesson and one for all: minutes of computing on each route, memory, and the bill."""
    rows = []
    for at, lesson in enumerate(routes[0].lessons):
        here = [route.lessons[at] for route in routes]
        minutes = {_column(route): minutes_text(one) for route, one in zip(routes, here, strict=True)}
        vram = [one.vram_gib for one in here if one.vram_gib is not None]
        memory = {"RAM GiB": f"{max(one.ram_gib for one in here):.1f}", "VRAM GiB": f"{max(vram):.1f}" if vram else ""}
        bill = money_text(max(one.usd_low for one in here), max(one.usd_high for one in here))
        rows.append({"lesson": lesson.lesson, **minutes, **memory, "USD": bill})
    bill = money_text(max(r.total("usd_low") for r in routes), max(r.total("usd_high") for r in routes))
    minutes = {_column(route): minutes_text(route) for route in routes}
    return [*rows, {"lesson": TOTAL, **minutes, "RAM GiB": "", "VRAM GiB": "", "USD": bill}]


def notes(routes: Sequence[RouteForecast]) -> list[str]:
    """What the rows rest on: for each route the measured machine or the card's published peaks, and the price row."""
    lines = []
    for route in routes:
        lines += [f"{route.route}: {route.basis}", f"  price: {route.price}"]
        lines += [f"  card: {route.card}"] if route.card else []
    return [*lines, MEANING]


def work_rows(lesson: LessonForecast, cost: Callable[[Unit], float]) -> list[dict[str, str]]:
    """What a lesson does, a row for each unit, the dearest first; `cost` gives the seconds of a unit here."""
    parts: dict[Unit, list[Work]] = {}
    for piece in lesson.work:
        parts.setdefault(piece.unit, []).append(piece)
    amounts = {unit: sum(piece.amount for piece in pieces) for unit, pieces in parts.items()}
    return [
        {
            "lesson": lesson.lesson,
            "seconds": f"{amounts[unit] * cost(unit):.1f}",
            "amount": f"{amounts[unit]:.0f}",
            "unit": unit.value,
            "why": shorten("; ".join(dict.fromkeys(piece.why for piece in parts[unit])), 60, placeholder=" …"),
        }
        for unit in sorted(parts, key=lambda unit: -amounts[unit] * cost(unit))
    ]
