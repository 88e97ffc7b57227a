"""The workbook's pictures. Each function returns a figure that a notebook shows by naming it; none touches pyplot.

A pyplot figure is global state: it shows twice, leaks memory, and depends on the backend a kernel happens to have.
Colours are those of Okabe and Ito (2008), which stay apart for colour-blind readers; pass and fail also differ by
hatching, so the pictures survive a black-and-white printer.
"""

import io
import math
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from labkit.environment import unwatched
from labkit.errors import LabError
from labkit.evaluation.compare import Comparison
from labkit.evidence import finite
from labkit.levers.table import LeverTable, spread
from labkit.routes import Route
from labkit.training.log import trace_line

BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#999999"
PALETTE = (BLUE, ORANGE, GREEN, VERMILION, "#56B4E9", "#CC79A7", "#F0E442", GREY)


_MEMORY_PARTS = (
    ("weights", "weights", BLUE, ""),
    ("kv_cache", "KV cache", ORANGE, "//"),
    ("activations", "activations", GREEN, "xx"),
    ("overhead", "overhead", GREY, ".."),
)


class Plot(Figure):
    """A figure that any Jupyter front end shows as a picture, whether or not an inline backend is set up."""

    def __init__(self, width: float = 7.0, height: float = 3.6):
        super().__init__(figsize=(width, height), dpi=100, layout="constrained")
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


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
        numbers = [(finite(_field(row, "step")), finite(_field(row, key))) for row in rows]
        known = [(step, loss) for step, loss in numbers if step is not None and loss is not None]
        axes.plot([step for step, _ in known], [loss for _, loss in known], style, color=colour, label=label, ms=4)
    devices = sorted({str(device) for row in rows if (device := _field(row, "device"))})
    meaning = "smoke test" if devices and devices != ["cuda"] else "training run"
    axes.set(
        xlabel="step", ylabel="loss (nats per token)", title=f"{meaning} on {', '.join(devices) or 'no device yet'}"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _field(row: object, key: str) -> object:
    return row.get(key) if isinstance(row, Mapping) else getattr(row, key, None)


def compare_curves(runs: Mapping[str, Sequence], title: str) -> Plot:
    """Held-out loss by step of several runs, each under its own label: what one changed dial does to the curve."""
    figure = Plot()
    axes = figure.subplots()
    for number, (label, rows) in enumerate(runs.items()):
        known = [(finite(_field(row, "step")), finite(_field(row, "val_loss"))) for row in rows]
        points = [(step, loss) for step, loss in known if step is not None and loss is not None]
        axes.plot(*zip(*points, strict=True), "os^D"[number % 4] + "-", color=PALETTE[number % 4], label=label, ms=4)
    axes.set(xlabel="step", ylabel="held-out loss (nats per token)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def lever_bars(table: LeverTable) -> Plot:
    """For each group of cases the share that passes with each lever: the bar is the worst seed, the line reaches to the
    best. Levers that lose a case which the plain run passes are hatched in that group.
    """
    figure = Plot(width=9.0, height=1.2 + 1.15 * len(table.groups))
    panels = figure.subplots(len(table.groups), 1, sharex=True, squeeze=False)[:, 0]
    for axes, group in zip(panels, table.groups, strict=True):
        for number, lever in enumerate(table.levers):
            least, most, total = table.passed(lever, group)
            lost = any(row.count(group).broken for row in table.runs_of(lever))
            colour = GREY if lever == table.levers[0] else VERMILION if lost else BLUE
            axes.bar(number, least / total, color=colour, hatch="//" if lost else "", edgecolor="white")
            axes.plot([number, number], [least / total, most / total], color="black", lw=2)
            axes.annotate(spread(least, most), (number, most / total), ha="center", va="bottom", fontsize=8)
        axes.set(ylim=(0, 1.3), yticks=[0, 1], yticklabels=["0", str(total)])
        axes.set_title(group, loc="left", fontsize=9, pad=2)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xticks(range(len(table.levers)), table.levers, rotation=20)
    figure.suptitle("cases passed; hatched: a case that the plain run passes is lost", fontsize=10)
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


def failure_table(summary: Mapping) -> Plot:
    """Passed and failed cases by risk, from eval_summary.json: one bar for each risk and never one average."""
    by_risk = summary["by_risk"]
    risks = list(by_risk)
    passed = [by_risk[risk]["passed"] for risk in risks]
    failed = [by_risk[risk]["failed"] for risk in risks]
    figure = Plot(7.0, 0.5 * len(risks) + 1.4)
    axes = figure.subplots()
    bars = (
        axes.barh(risks, passed, color=BLUE, label="passed"),
        axes.barh(risks, failed, left=passed, color=ORANGE, hatch="//", edgecolor="white", label="failed"),
    )
    for container, counts in zip(bars, (passed, failed), strict=True):
        numbers = [str(count) if count else "" for count in counts]
        for text in axes.bar_label(container, numbers, label_type="center"):
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.5} if text.get_text() else None)
    axes.invert_yaxis()
    _whole_numbers(axes, "x")
    axes.set(xlabel="cases", title=f"{summary.get('cases', sum(passed) + sum(failed))} fixed cases by risk")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def case_changes(*comparisons: Comparison) -> Plot:
    """Fixed cases to the right and broken ones to the left, for each risk: one panel for each comparison."""
    tables = [comparison.by_risk() for comparison in comparisons]
    heights = [0.5 * len(table) + 1.6 for table in tables]
    figure = Plot(7.0, sum(heights))
    panels = figure.subplots(len(tables), squeeze=False, height_ratios=heights)[:, 0]
    widest = max([1, *(max(row["fixed"], row["broken"]) for table in tables for row in table.values())])
    for axes, comparison, table in zip(panels, comparisons, tables, strict=True):
        _draw_changes(axes, comparison, table)
        axes.set_xlim(-widest - 1, widest + 1)
    return figure


def _draw_changes(axes, comparison: Comparison, by_risk: Mapping[str, Mapping[str, int]]) -> None:
    looks = {"fixed": {"color": BLUE}, "broken": {"color": ORANGE, "hatch": "//", "edgecolor": "white"}}
    for name, sign in (("fixed", 1), ("broken", -1)):
        counts = [row[name] for row in by_risk.values()]
        bars = axes.barh(list(by_risk), [sign * count for count in counts], label=name, **looks[name])
        axes.bar_label(bars, [str(count or "") for count in counts], padding=3)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    _whole_numbers(axes, "x")
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    setting = f"\n{textwrap.fill(comparison.setting, 70)}" if comparison.setting else ""
    axes.set(xlabel="cases whose verdict changed", title=f"{comparison.after} against {comparison.before}{setting}")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def save_plot(figure: Plot, path: Path) -> None:
    """Write the picture; the file's name says in which format. Raises LabError for a format or a place that is none."""
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise LabError(
            f"{path.name} cannot be drawn: {error}", "give a .png or .svg file in a folder that is there"
        ) from None


def latency_plot(benchmark: Mapping) -> Plot:
    """Latency of each request of benchmark.json, with p50 (line) and p95 (dashes) of each level, in milliseconds."""
    figure = Plot()
    axes = figure.subplots()
    for level, colour in zip(benchmark["levels"], _colours(len(benchmark["levels"])), strict=True):
        rows = [row for row in benchmark["rows"] if row["concurrency"] == level["concurrency"]]
        latencies = [number for row in rows if (number := finite(row.get("latency_ms"))) is not None]
        label = f"{level['concurrency']} at a time: p50 {level['p50_ms']:.0f} ms, p95 {level['p95_ms']:.0f} ms"
        axes.plot(range(1, len(latencies) + 1), latencies, "o", color=colour, label=label)
        for key, style in (("p50_ms", "-"), ("p95_ms", "--")):
            axes.axhline(level[key], color=colour, linestyle=style)
    axes.set_ylim(bottom=0)
    _whole_numbers(axes, "x")
    axes.set(xlabel="request", ylabel="latency (ms)", title=_measured_on(benchmark))
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def throughput_plot(benchmark: Mapping) -> Plot:
    """What more clients at once gain and what each of them pays: tokens per second and p95 against concurrency."""
    figure = Plot(8.0, 3.4)
    clients = [level["concurrency"] for level in benchmark["levels"]]
    panels = (("tokens_per_second", "tokens per second", BLUE), ("p95_ms", "p95 latency (ms)", VERMILION))
    for axes, (key, label, colour) in zip(figure.subplots(1, 2), panels, strict=True):
        values = [level[key] for level in benchmark["levels"]]
        axes.plot(clients, values, "o-", color=colour)
        axes.set_ylim(0, 1.1 * max(values))
        axes.set_xticks(clients)
        axes.set(xlabel="clients at once", ylabel=label)
        axes.grid(alpha=0.3)
    figure.suptitle(_measured_on(benchmark), fontsize="medium")
    return figure


def _measured_on(benchmark: Mapping) -> str:
    return f"{benchmark['model']} on {benchmark['route']} ({benchmark['device']}): {benchmark['claim']}"


def quantization_plot(rows: Sequence, model: str) -> Plot:
    """What each number format saves and costs: size of the weights against KL from float32, and against speed.

    `rows` are FormatRows, or those of the CSV that `labkit quantize` writes; a format that was not run is left out.
    """
    panels = (("kl", "KL from float32 (nats per token)"), ("tokens_per_second", "tokens per second, one answer"))
    run = [row for row in rows if not _field(row, "not_run")]
    figure = Plot(8.0, 4.0)
    for axes, (key, label) in zip(figure.subplots(1, 2), panels, strict=True):
        for number, row in enumerate(run):
            size, value = finite(_field(row, "size_bytes")), finite(_field(row, key))
            if size is None or value is None:
                continue
            style = {"color": PALETTE[number % len(PALETTE)], "marker": "os^DvPX*<"[number % 9], "ms": 8, "alpha": 0.8}
            axes.plot([size / 1e6], [value], linestyle="", label=_field(row, "format"), **style)
        axes.set(xlabel="weights (MB)", ylabel=label)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    divergence, speed = figure.axes
    divergence.set_yscale("symlog", linthresh=1e-6)  # float32's own 0 has a place on it
    divergence.set_ylim(-1e-7, 3 * divergence.get_ylim()[1])
    divergence.set_title("left and down is better", fontsize="small")
    speed.set_yscale("log")
    speed.set_title("left and up is better", fontsize="small")
    figure.legend(*divergence.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    devices = ", ".join(dict.fromkeys(str(_field(row, "device")) for row in run))
    figure.suptitle(f"{model} in {len(run)} formats on {devices}", fontsize="medium")
    return figure


def edge_plot(checklist: Mapping) -> Plot:
    """Time to the first token over the prompt's length, with its slope, and resident memory over many answers.

    `checklist` is quality_checklist.json. Bars reach to the slowest repeat; the line is the least squares of medians.
    """
    figure = Plot(8.0, 3.6)
    latency, memory = figure.subplots(1, 2)
    rows, slope = checklist["latencies"], checklist["slope"]
    tokens, medians = [row["tokens"] for row in rows], [1000 * row["seconds"] for row in rows]
    above = [1000 * (row["slowest"] - row["seconds"]) for row in rows]
    latency.errorbar(tokens, medians, yerr=[[0] * len(rows), above], fmt="o", color=BLUE, capsize=3)
    start = sum(medians) / len(medians) - slope * sum(tokens) / len(tokens)
    line = [start + slope * length for length in (tokens[0], tokens[-1])]
    latency.plot([tokens[0], tokens[-1]], line, color=ORANGE, label=f"{slope:.3f} ms a token")
    latency.set(xlabel="tokens of the prompt", ylabel="first token (ms)")
    latency.set_ylim(bottom=0)
    latency.legend()
    answers, held = zip(*checklist["memory"], strict=True)
    memory.plot(answers, held, color=BLUE)
    memory.set_ylim(min(held) - 5, max(held) + 5)  # a change of some kilobytes is none
    memory.ticklabel_format(useOffset=False)
    memory.set(xlabel="answers", ylabel="resident memory (MB)", title=f"{checklist['growth']:+.2f} MB for 100 answers")
    for axes in (latency, memory):
        axes.grid(alpha=0.3)
    figure.suptitle(f"{checklist['model']} ({checklist['backend']}, {checklist['dtype']})", fontsize="medium")
    return figure


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
    for number, colour in zip(lessons, _colours(len(lessons)), strict=True):
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


def _colours(count: int) -> list[str]:
    return [PALETTE[index % len(PALETTE)] for index in range(count)]


def _whole_numbers(axes, which: str) -> None:
    from matplotlib.ticker import MaxNLocator

    getattr(axes, f"{which}axis").set_major_locator(MaxNLocator(integer=True))
