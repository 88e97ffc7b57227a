"""The loss curve of a training run, as coordinates for an SVG drawing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from labkit.evidence import finite

PLOT_WIDTH, PLOT_HEIGHT, PLOT_MARGIN = 640, 260, 44


@dataclass(frozen=True)
class LossPlot:
    """The loss curve as SVG coordinates: `lines` are (name, CSS class, polyline points), `ticks` the axes' numbers."""

    lines: tuple[tuple[str, str, str], ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    device: str


def loss_plot(rows: Sequence[Mapping[str, str]]) -> LossPlot | None:
    """Train and held-out loss by step, from training_log.csv's rows; None when fewer than two rows can be drawn."""
    points = [(finite(row.get("step")), finite(row.get("train_loss")), finite(row.get("val_loss"))) for row in rows]
    known = [point for point in points if None not in point]
    if len(known) < 2:
        return None
    steps = [point[0] for point in known]
    losses = [loss for point in known for loss in point[1:]]
    x = _scale(min(steps), max(steps), PLOT_MARGIN, PLOT_WIDTH - 12)
    y = _scale(min(losses), max(losses), PLOT_HEIGHT - PLOT_MARGIN, 12)
    lines = tuple(
        (name, css, " ".join(f"{x(point[0]):.1f},{y(point[index]):.1f}" for point in known))
        for index, (name, css) in enumerate((("train", "train"), ("held out", "held-out")), start=1)
    )
    x_ticks = tuple((x(value), f"{value:g}") for value in (min(steps), max(steps)))
    y_ticks = tuple((y(value), f"{value:.2f}") for value in (min(losses), max(losses)))
    devices = sorted({str(row.get("device")) for row in rows})
    return LossPlot(lines, x_ticks, y_ticks, " and ".join(devices))


def _scale(low: float, high: float, start: float, end: float):
    width = (high - low) or 1.0
    return lambda value: start + (value - low) / width * (end - start)
