"""Measurements: latency, throughput, number formats, and a conversion for a small machine."""

from collections.abc import Mapping, Sequence

from labkit.evidence import finite
from labkit.plots.figure import BLUE, ORANGE, PALETTE, VERMILION, Plot, colours, field_of, whole_numbers


def latency_plot(benchmark: Mapping) -> Plot:
    """Latency of each request of benchmark.json, with p50 (line) and p95 (dashes) of each level, in milliseconds."""
    figure = Plot()
    axes = figure.subplots()
    for level, colour in zip(benchmark["levels"], colours(len(benchmark["levels"])), strict=True):
        rows = [row for row in benchmark["rows"] if row["concurrency"] == level["concurrency"]]
        latencies = [number for row in rows if (number := finite(row.get("latency_ms"))) is not None]
        label = f"{level['concurrency']} at a time: p50 {level['p50_ms']:.0f} ms, p95 {level['p95_ms']:.0f} ms"
        axes.plot(range(1, len(latencies) + 1), latencies, "o", color=colour, label=label)
        for key, style in (("p50_ms", "-"), ("p95_ms", "--")):
            axes.axhline(level[key], color=colour, linestyle=style)
    axes.set_ylim(bottom=0)
    whole_numbers(axes, "x")
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
    run = [row for row in rows if not field_of(row, "not_run")]
    figure = Plot(8.0, 4.0)
    for axes, (key, label) in zip(figure.subplots(1, 2), panels, strict=True):
        for number, row in enumerate(run):
            size, value = finite(field_of(row, "size_bytes")), finite(field_of(row, key))
            if size is None or value is None:
                continue
            style = {"color": PALETTE[number % len(PALETTE)], "marker": "os^DvPX*<"[number % 9], "ms": 8, "alpha": 0.8}
            axes.plot([size / 1e6], [value], linestyle="", label=field_of(row, "format"), **style)
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
    devices = ", ".join(dict.fromkeys(str(field_of(row, "device")) for row in run))
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
