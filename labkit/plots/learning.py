"""Training: losses, two runs side by side, a curve that grows, and what a token may look at."""

import math
import time
from collections.abc import Callable, Mapping, Sequence

from labkit.environment import unwatched
from labkit.evidence import finite
from labkit.plots.figure import BLUE, PALETTE, VERMILION, Plot, field_of
from labkit.training.log import trace_line


def loss_curve(rows: Sequence) -> Plot:
    """Train and held-out loss by step (cross-entropy in nats per token).

    `rows` are those of training_log.csv, as read from the file (texts in a mapping) or as the loop makes them.

    The title names the device, because the same curve is a smoke test on a CPU and evidence for a GPU on CUDA.
    """
    figure = Plot()
    axes = figure.subplots()
    for key, label, colour, style in (
        ("train_loss", "train", BLUE, "o-"),
        ("val_loss", "held out", VERMILION, "s--"),
    ):
        numbers = [(finite(field_of(row, "step")), finite(field_of(row, key))) for row in rows]
        known = [(step, loss) for step, loss in numbers if step is not None and loss is not None]
        axes.plot([step for step, _ in known], [loss for _, loss in known], style, color=colour, label=label, ms=4)
    devices = sorted({str(device) for row in rows if (device := field_of(row, "device"))})
    meaning = "smoke test" if devices and devices != ["cuda"] else "training run"
    axes.set(
        xlabel="step", ylabel="loss (nats per token)", title=f"{meaning} on {', '.join(devices) or 'no device yet'}"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def compare_curves(runs: Mapping[str, Sequence], title: str) -> Plot:
    """Held-out loss by step of several runs, each under its own label: what one changed dial does to the curve."""
    figure = Plot()
    axes = figure.subplots()
    for number, (label, rows) in enumerate(runs.items()):
        known = [(finite(field_of(row, "step")), finite(field_of(row, "val_loss"))) for row in rows]
        points = [(step, loss) for step, loss in known if step is not None and loss is not None]
        axes.plot(*zip(*points, strict=True), "os^D"[number % 4] + "-", color=PALETTE[number % 4], label=label, ms=4)
    axes.set(xlabel="step", ylabel="held-out loss (nats per token)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


class LiveLoss:
    """A loss curve that redraws itself in one notebook output while a model trains.

    Outside Jupyter it only collects rows. It draws at most once in `every` seconds, so that a fast loop is not slowed
    down; `close` draws the last state. In a notebook that nobody watches, each row is a plain line and the picture is
    drawn once.
    """

    def __init__(self, every: float = 2.0, clock: Callable[[], float] = time.monotonic):
        self.rows: list = []
        self._every, self._clock = every, clock
        self._last = -math.inf
        self._handle = None

    def update(self, row: object) -> None:
        """Add one row of the training log; pass this method to a training loop as its callback."""
        self.rows.append(row)
        if unwatched():
            print(trace_line(row), flush=True)
        elif self._clock() - self._last >= self._every:
            self._draw()

    def close(self) -> None:
        if self.rows:
            self._draw()

    def _draw(self) -> None:
        from IPython import get_ipython
        from IPython.display import display

        self._last = self._clock()
        if get_ipython() is None:
            return
        if self._handle is None:
            self._handle = display(loss_curve(self.rows), display_id=True)
        else:
            self._handle.update(loss_curve(self.rows))


def causal_mask(mask, tokens: Sequence[str] = ()) -> Plot:
    """The attention mask, shape (T, T): row i is the position that looks, column j the one it may look at.

    `mask` is anything that reads as a square table of numbers, 0 where a position is hidden. `tokens` label the axes.
    """
    table = [[float(value) for value in row] for row in mask]
    size = len(table)
    figure = Plot(4.6, 4.4)
    axes = figure.subplots()
    axes.imshow([[value != 0 for value in row] for row in table], cmap="cividis", vmin=0, vmax=1)
    labels = [repr(token)[1:-1] for token in tokens[:size]] if tokens else [str(place) for place in range(size)]
    if size <= 24:
        axes.set_xticks(range(size), labels, rotation=90 if tokens else 0)
        axes.set_yticks(range(size), labels)
    axes.set(xlabel="may look at position", ylabel="position that predicts", title="causal mask: yellow is visible")
    return figure
