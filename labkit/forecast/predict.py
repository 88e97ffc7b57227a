"""From counted work and measured costs to minutes, memory and money for each lesson on each route.

On the route that the measured device is for, minutes are the sum of amount times cost. On a route with another device
they are a range: the host's part as it is here, and the part that a GPU takes over between what the card's published
peak would leave of it and what it takes here. The lower end is an ideal that small models do not reach, because the
time between two small products, and not the products, is what they wait for.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from labkit.forecast.cards import GpuPeak, peak_of, peak_text, price_of, price_text
from labkit.forecast.probe import Probe
from labkit.forecast.units import ANSWERS, COMPUTE, Unit, Work
from labkit.forecast.work import work_of
from labkit.landscape.memory import memory_estimate
from labkit.landscape.models import EMBEDDED
from labkit.landscape.prices import Price
from labkit.routes import Route
from labkit.workbook import LESSONS, Lesson

Span = tuple[float, float | None, float]  # seconds: at least, expected where that can be said, at most

WITHIN = 1.3  # the whole on the machine that was measured is meant to hold within this factor, at the same load
# Which part of the probe held as much memory as the lesson's notebook, and which processes run beside it.
HELD = {
    "13.0": ("kernel",),
    "13.1": ("kernel",),
    "13.2": ("answers", "server"),
    "13.3": ("answers",),
    "13.4": ("kernel", "server", "server"),
    "13.5": ("kernel",),
    "13.6": ("tuning",),
    "13.7": ("answers",),
}


@dataclass(frozen=True)
class LessonForecast:
    """Minutes of computing, without reading: `minutes` is None where only a range can be given. `planned_minutes` are
    the learner's, from the route file. `ram_gib` and `vram_gib` (None without a GPU) are GiB. `usd_low` is the bill for
    the computing at best, `usd_high` for the whole planned time, in which the machine waits for its reader.
    """

    lesson: str
    title: str
    minutes_low: float
    minutes: float | None
    minutes_high: float
    planned_minutes: int
    ram_gib: float
    vram_gib: float | None
    usd_low: float
    usd_high: float
    work: tuple[Work, ...]


@dataclass(frozen=True)
class RouteForecast:
    """A route's lessons, in their order. `basis` says what the minutes rest on, `price` and `card` name the rows."""

    route: str
    title: str
    extrapolated: bool
    basis: str
    price: str
    card: str
    lessons: tuple[LessonForecast, ...]

    def total(self, field: str) -> float | None:
        values = [getattr(lesson, field) for lesson in self.lessons]
        return None if None in values else sum(values)


def forecast(
    probe: Probe, routes: Sequence[Route], here: str = "local_cpu", probed_in_lesson: bool = False
) -> tuple[RouteForecast, ...]:
    """The forecast of each of `routes`. The route `here` is the one that is run on this machine, whatever it has: a
    route that wants a GPU and finds none takes its fallback. `probed_in_lesson`: 13.1 made the probe and pays for it.
    """
    return tuple(_route(probe, route, here, probed_in_lesson) for route in routes)


def _route(probe: Probe, route: Route, here: str, probed_in_lesson: bool) -> RouteForecast:
    price = price_of(route)
    peak = peak_of(price)
    extrapolated = route.route not in ("local_cpu", here) and route.device != probe.device
    lessons = []
    for lesson in LESSONS:
        work = work_of(lesson.number, route, "cuda" if extrapolated else probe.device)
        if lesson.number == "13.1" and probed_in_lesson:
            work = (*work, Work(Unit.PROBE, probe.took, "measuring for this forecast"))
        span = extrapolated_span(probe, work, peak) if extrapolated else measured_span(probe, work)
        lessons.append(_lesson(probe, route, lesson, work, span))
    return RouteForecast(
        route=route.route,
        title=route.title,
        extrapolated=extrapolated,
        basis=_basis(probe, extrapolated, peak),
        price=_price(route, price),
        card=peak_text(peak) if peak else "",
        lessons=tuple(lessons),
    )


def _lesson(probe: Probe, route: Route, lesson: Lesson, work: tuple[Work, ...], span: Span) -> LessonForecast:
    low, expected, high = span
    planned = lesson.minutes(route)
    on_gpu = expected is None or probe.device == "cuda"
    return LessonForecast(
        lesson=lesson.number,
        title=lesson.title,
        minutes_low=low / 60,
        minutes=None if expected is None else expected / 60,
        minutes_high=high / 60,
        planned_minutes=planned,
        ram_gib=sum(probe.memory_mib[part] for part in HELD[lesson.number]) / 1024,
        vram_gib=_vram(lesson.number) if on_gpu else None,
        usd_low=low / 3600 * route.hourly_usd,
        usd_high=max(high / 60, planned) / 60 * route.hourly_usd,
        work=work,
    )


def seconds(probe: Probe, work: Iterable[Work]) -> float:
    return sum(piece.amount * probe.cost(piece.unit) for piece in work)


def measured_span(probe: Probe, work: Sequence[Work]) -> Span:
    """Seconds on the machine that was measured."""
    expected = seconds(probe, work)
    return expected / WITHIN, expected, expected * WITHIN


def extrapolated_span(probe: Probe, work: Sequence[Work], peak: GpuPeak | None) -> Span:
    """Seconds on a card that nobody here has: at its published peaks, and as if it brought nothing."""
    host = seconds(probe, (piece for piece in work if piece.unit not in COMPUTE))
    for_card = [piece for piece in work if piece.unit in COMPUTE]
    least = sum(seconds(probe, [piece]) / _gain(probe, piece.unit, peak) for piece in for_card)
    return host + least, None, seconds(probe, work)


def _gain(probe: Probe, unit: Unit, peak: GpuPeak | None) -> float:
    """How many times faster the card is at most: training waits for arithmetic, answers for memory."""
    if peak is None:
        return 1.0
    if unit in ANSWERS:
        return max(1.0, peak.gb_per_second * 1e9 / probe.memory_bytes)
    return max(1.0, peak.tflops_16bit * 1e12 / probe.flops)


def _vram(lesson: str) -> float | None:
    """GiB of the card that the embedded model needs by the formula of `labkit memory`, once for each process."""
    one = memory_estimate(EMBEDDED, "fp32", 512, 8).total_gib
    return None if one is None else one * max(1, HELD[lesson].count("server") + ("server" not in HELD[lesson]))


def _basis(probe: Probe, extrapolated: bool, peak: GpuPeak | None) -> str:
    measured = f"measured here: {probe.machine}, {probe.cores} cores, load {probe.load:g}, {probe.written}"
    if not extrapolated:
        return f"{measured}; the whole holds within {WITHIN - 1:.0%} while the load stays"
    if peak is None:
        return f"verify: no published peak of the card is known, so this is what {probe.machine} would take"
    return (
        "verify: extrapolated, from the card's published peaks (low) to a card that brings a small model nothing (high)"
    )


def _price(route: Route, price: Price | None) -> str:
    if route.route == "local_cpu":
        return "your own machine: no bill; electricity is not counted"
    if price is None:
        return f"${route.hourly_usd:.2f} an hour from the route file; verify: no row of prices.csv has it"
    return price_text(price)
