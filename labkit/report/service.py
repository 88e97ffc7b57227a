"""What was found out about a running service, in the terminal."""

from collections.abc import Mapping
from itertools import groupby
from operator import itemgetter

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

CONFORMANCE_STYLES = {"supported": "green", "ignored": "bold red", "wrong": "bold red", "not offered": "dim"}


def print_conformance(found: Mapping, console: Console | None = None) -> None:
    """conformance.json as a table for each group, the count of each verdict, and what they do not prove."""
    console = console or Console(highlight=False)
    console.print(Text(f"{found['base_url']}, model {found['model']}"))
    for group, rows in groupby(found["findings"], key=itemgetter("group")):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column(group, no_wrap=True, min_width=23)
        table.add_column("verdict", no_wrap=True, min_width=11)
        table.add_column("detail", overflow="fold")
        for row in rows:
            style = CONFORMANCE_STYLES.get(row["verdict"], "yellow")
            table.add_row(Text(row["feature"]), Text(row["verdict"], style=style), Text(row["detail"]))
        console.print(table)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in found["counts"].items())
    console.print(Text(counts, style="bold"))
    console.print(Text(found["not_proved"]))


LEVEL_COLUMNS = {
    "clients": "concurrency",
    "tokens/s": "tokens_per_second",
    "req/s": "requests_per_second",
    "TTFT": "ttft_p50_ms",
    "TPOT": "tpot_p50_ms",
    "p50": "p50_ms",
    "p95": "p95_ms",
    "p99": "p99_ms",
    "MiB": "peak_memory_mib",
    "errors": "errors",
}


def print_benchmark(report: Mapping, console: Console | None = None) -> None:
    """The levels of benchmark.json, times in ms, and what they may claim. A figure nobody could see is left blank."""
    console = console or Console(highlight=False)
    console.print(
        Text(f"{report['model']} on {report['device']}, {report['base_url']}; times in ms, TTFT and TPOT at p50")
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in LEVEL_COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for level in report["levels"]:
        table.add_row(*(_figure(level[key]) for key in LEVEL_COLUMNS.values()))
    console.print(table)
    for level in report["levels"]:
        for kind, count in level["error_kinds"].items():
            console.print(Text(f"{level['concurrency']} at a time, {count} times: {kind}"))
    console.print(Text(report["claim"]))


def print_comparison(report: Mapping, console: Console | None = None) -> None:
    """The ratios a / b of benchmark_comparison.json: median over the rounds, and in brackets least and most."""
    console = console or Console(highlight=False)
    for side in ("a", "b"):
        console.print(Text("{}: {model} on {device}, {base_url}".format(side, **report[side])))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in ("clients", "tokens/s a / b", "TTFT p50 a / b", "p95 a / b", "errors"):
        table.add_column(column, justify="right", overflow="fold")
    for level in report["levels"]:
        cells = [_spread(found) for found in level["ratios"].values()]
        errors = ", ".join(str(sum(held[side]["errors"] for held in level["rounds"])) for side in ("a", "b"))
        table.add_row(str(level["concurrency"]), *cells, errors)
    console.print(table)
    console.print(Text(f"median of {len(report['levels'][0]['rounds'])} rounds (least to most); {report['claim']}"))


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if isinstance(value, float) and value < 100 else f"{value:,.0f}"


def _spread(found: Mapping | None) -> str:
    return "{median:.2f} ({min:.2f} to {max:.2f})".format(**found) if found else ""
