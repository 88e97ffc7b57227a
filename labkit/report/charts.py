"""The report's pictures as coordinates for SVG: curves and points over an x axis, and horizontal bars."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from labkit.evidence import finite
from labkit.verification.verdicts import printable

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 34, 44  # room for numbers, for the key above, and for the axis below
BAR, GAP, LABELS, NUMBERS = 22, 8, 150, 96  # of a bar chart, in the same units

MOST_DOTS, MOST_BARS, MOST_LETTERS = 500, 12, 20  # a stranger's file may hold any number of them


@dataclass(frozen=True)
class Series:
    """`line` is the points of a polyline, `dots` single ones; `css` is the class that colours both."""

    name: str
    css: str
    line: str = ""
    dots: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Chart:
    """One drawing. `description` says in words what the picture shows; ticks are (place, text)."""

    title: str
    description: str
    series: tuple[Series, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    x_label: str


@dataclass(frozen=True)
class Bar:
    """One row: its label, parts as (css, x, width), and the text after the bar."""

    label: str
    parts: tuple[tuple[str, float, float], ...]
    text: str


@dataclass(frozen=True)
class Bars:
    title: str
    description: str
    bars: tuple[Bar, ...]
    key: tuple[tuple[str, str], ...] = ()


def loss_chart(rows: Sequence[Mapping[str, str]]) -> Chart | None:
    """Train and held-out loss by step, from training_log.csv's rows; None when fewer than two rows can be drawn."""
    points = [(finite(row.get("step")), finite(row.get("train_loss")), finite(row.get("val_loss"))) for row in rows]
    known = [point for point in points if None not in point]
    if len(known) < 2:
        return None
    steps = [point[0] for point in known]
    x = _scale(min(steps), max(steps), LEFT, WIDTH - RIGHT)
    y, y_ticks = _upright([loss for point in known for loss in point[1:]], "{:.2f}")
    series = tuple(
        Series(name, css, " ".join(f"{x(point[0]):.1f},{y(point[index]):.1f}" for point in known))
        for index, (name, css) in enumerate((("train", "train"), ("held out", "held-out")), start=1)
    )
    device = printable(" and ".join(sorted({str(row.get("device")) for row in rows})))
    told = f"held out from {known[0][2]:.2f} to {known[-1][2]:.2f} in {steps[-1]:g} steps on {device}"
    ticks = tuple((x(value), f"{value:g}") for value in (min(steps), max(steps)))
    title = f"Loss (nats per token) by step, on {device}"
    return Chart(title, f"Loss, {told}", series, ticks, y_ticks, "step")


def latency_chart(benchmark: Mapping) -> Chart | None:
    """Latency of each request of benchmark.json, one series for each number of clients, from zero upwards."""
    levels = [level for level in _dicts(benchmark.get("levels")) if finite(level.get("concurrency")) is not None]
    rows = _dicts(benchmark.get("rows"))
    found = {level["concurrency"]: _latencies(rows, level["concurrency"])[:MOST_DOTS] for level in levels[:4]}
    measured = [value for values in found.values() for value in values]
    if not measured:
        return None
    most = max(map(len, found.values()))
    x = _scale(1, max(most, 2), LEFT + 8, WIDTH - RIGHT - 8)
    y, y_ticks = _upright([0.0, *measured], "{:.0f}")
    series = tuple(
        Series(_clients(clients), f"level-{place}", dots=tuple((x(n), y(v)) for n, v in enumerate(values, start=1)))
        for place, (clients, values) in enumerate(found.items())
    )
    told = "; ".join(f"{_clients(level['concurrency'])}, p95 {_number(level.get('p95_ms'))} ms" for level in levels[:4])
    ticks = ((x(1), "1"), (x(most), f"{most}")) if most > 1 else ((x(1), "1"),)
    title = f"Latency of each request (ms): {printable(str(benchmark.get('claim')))}"
    return Chart(title, f"Latency of each request: {told}", series, ticks, y_ticks, "request")


def _latencies(rows: list[dict], clients: object) -> list[float]:
    values = (finite(row.get("latency_ms")) for row in rows if row.get("concurrency") == clients)
    return [value for value in values if value is not None]


def _clients(count: object) -> str:
    return "1 client" if count == 1 else f"{finite(count):g} clients"


def risk_bars(by_risk: Mapping) -> Bars | None:
    """Passed and failed cases of each risk, from eval_summary.json: never one average."""
    counts = [
        (printable(risk)[:MOST_LETTERS], finite(held.get("passed")), finite(held.get("failed")))
        for risk, held in islice(by_risk.items(), MOST_BARS)
    ]
    known = [(risk, passed, failed) for risk, passed, failed in counts if passed is not None and failed is not None]
    most = max((passed + failed for _, passed, failed in known), default=0)
    if most <= 0:
        return None
    x = _scale(0, most, 0, WIDTH - LABELS - NUMBERS)
    bars = tuple(
        Bar(risk, (("passed", 0, x(passed)), ("failed", x(passed), x(failed))), f"{passed:g} of {passed + failed:g}")
        for risk, passed, failed in known
    )
    told = ", ".join(f"{bar.label} {bar.text}" for bar in bars)
    return Bars("Cases by risk", f"Cases passed: {told}", bars, (("passed", "passed"), ("failed", "failed")))


def memory_bars(measured: Sequence[tuple[str, float]]) -> Bars | None:
    """Peaks of resident memory as (what, MiB)."""
    most = max((size for _, size in measured), default=0)
    if most <= 0:
        return None
    x = _scale(0, most, 0, WIDTH - LABELS - NUMBERS)
    bars = tuple(Bar(what, (("memory", 0, x(size)),), f"{size:,.0f} MiB") for what, size in measured)
    return Bars("Most memory held (MiB)", "Most memory: " + ", ".join(f"{bar.label} {bar.text}" for bar in bars), bars)


def _dicts(value: object) -> list[dict]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _number(value: object) -> str:
    known = finite(value)
    return "unknown" if known is None else f"{known:.0f}"


def _upright(values: Sequence[float], form: str):
    """The scale of a y axis over `values`, and its ticks: least, middle and most."""
    low, high = min(values), max(values)
    y = _scale(low, high, HEIGHT - BOTTOM, TOP)
    return y, tuple((y(value), form.format(value)) for value in (low, (low + high) / 2, high))


def _scale(low: float, high: float, start: float, end: float):
    width = (high - low) or 1.0
    return lambda value: start + (value - low) / width * (end - start)
