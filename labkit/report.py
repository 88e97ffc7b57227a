"""What verification found, for people: a table in the terminal and one HTML file that needs no network.

The words in both come from `verify`; this room adds none of its own. Everything read from a pack is escaped, because
a pack may be a stranger's.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from labkit.adaptation.rag import RetrievalReport
from labkit.errors import LabError
from labkit.evaluation.compare import Comparison
from labkit.evidence import finite, read_csv, read_json, read_manifest, utc_now, write_atomically
from labkit.landscape.tables import banner, shown
from labkit.serving.engines import CAPABILITIES, REMOTE, Engine
from labkit.verification import Finding, Verdict, Verification, verify

REPORT = "report.html"
TEMPLATES = Path(__file__).resolve().parent / "templates"
STYLES = {Verdict.SUPPORTED: "green", Verdict.NOT_YET: "yellow", Verdict.CONTRADICTED: "bold red"}
CONFORMANCE_STYLES = {"supported": "green", "ignored": "bold red", "wrong": "bold red", "not offered": "dim"}
CHANGE_STYLES = {"broken": "bold red", "fixed": "green", "still failing": "yellow", "still passing": "dim"}
CONCLUSIONS = {
    0: "Everything that the route requires is supported.",
    1: "Something that the route requires is not there yet.",
    2: "Files contradict each other: this pack claims more than it shows.",
}

RUNTIME_WORDS = """\
An engine's exact command:  labkit serve --runtime ENGINE --model MODEL --dry-run
A remote API, the same test:  LABKIT_API_KEY="$MISTRAL_API_KEY" \\
    labkit smoke --base-url https://api.mistral.ai/v1 --model MODEL"""


def print_verification(verification: Verification, console: Console | None = None) -> None:
    """The verification as tables that read well in 80 columns; colour appears only where `console` is a terminal."""
    console = console or Console(highlight=False)
    console.print(f"Pack {escape(verification.pack)}, route {escape(verification.route)}", highlight=False)
    for title, findings in sections(verification):
        console.print(_table(title, findings))
    for finding in _to_do(verification):
        console.print(Text.assemble((f"next for {finding.name}: ", "bold"), finding.next_action))
    console.print(Text(conclusion(verification), style="bold"))


def print_failures(summary: Mapping, console: Console | None = None) -> None:
    """eval_summary.json as two tables: the counts for each risk, and each kind of failure with an example."""
    console = console or Console(highlight=False)
    counts = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("risk", "passed", "failed cases"):
        counts.add_column(column, overflow="fold")
    for risk, found in summary["by_risk"].items():
        failed = ", ".join(found["failed_ids"]) or "none"
        counts.add_row(Text(risk), f"{found['passed']} of {found['total']}", Text(failed))
    console.print(counts)
    if not summary["failures"]:
        return
    failures = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("risk", "check", "count", "example"):
        failures.add_column(column, overflow="fold")
    for row in summary["failures"]:
        failures.add_row(Text(row["risk"]), Text(row["check"]), str(row["count"]), Text(row["example"]))
    console.print(failures)


def print_changes(comparison: Comparison, console: Console | None = None) -> None:
    """The cases whose verdict changed, the counts for each risk, and the sentence that they allow."""
    console = console or Console(highlight=False)
    console.print(Text(f"{comparison.after} against {comparison.before}", style="bold"))
    cases = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("case", "risk", "change", "answer now, and why"):
        cases.add_column(column, overflow="fold")
    for found in comparison.changes:
        if found.change != "still passing":
            style = CHANGE_STYLES[found.change]
            words = Text(f"{found.after!r}: {found.reason}")
            cases.add_row(Text(found.case_id), Text(found.risk), Text(found.change, style=style), words)
    if cases.rows:
        console.print(cases)
    counts = _plain_table("risk", *CHANGE_STYLES)
    for risk, row in comparison.by_risk().items():
        counts.add_row(Text(risk), *(str(row[change]) for change in CHANGE_STYLES))
    console.print(counts)
    console.print(Text(comparison.sentence, style="bold"))


def print_pass_rates(rows: Sequence[Mapping], console: Console | None = None) -> None:
    """Cases passed for each run and risk, with the 95 % interval of the rate: few cases say little."""
    table = _plain_table("run", "risk", "passed", "95 % interval")
    for row in rows:
        interval = f"{row['low']:.0%} to {row['high']:.0%}"
        table.add_row(Text(row["run"]), Text(row["risk"]), f"{row['passed']} of {row['total']}", interval)
    (console or Console(highlight=False)).print(table)


def write_comparison(comparisons: Sequence[Comparison], rates: Sequence[Mapping], path: Path) -> None:
    """One HTML file with every comparison, case by case, and the pass rates; it loads nothing."""
    html = _template("comparison.html").render(comparisons=comparisons, rates=rates, changes=list(CHANGE_STYLES))
    try:
        write_atomically(path, _storable(html))
    except OSError as error:
        raise LabError(f"{path.name} cannot be written: {error.strerror}", "give --html another file") from None


def print_sources(answer: str, sources: Sequence[Mapping], console: Console | None = None) -> None:
    """An answer from documents, and what it may come from."""
    console = console or Console(highlight=False)
    console.print(Text(answer))
    if not sources:
        console.print(
            Text("No passage fits the question: the answer comes from the model's weights alone.", style="bold")
        )
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("source", "cited", "score", "text"):
        table.add_column(column, overflow="fold")
    for found in sources:
        cited = Text("yes", style="green") if found["cited"] else Text("no", style="yellow")
        table.add_row(Text(f"{found['id']} {found['title']}"), cited, f"{found['score']:.2f}", Text(found["text"]))
    console.print(table)


def print_retrieval(report: RetrievalReport, console: Console | None = None) -> None:
    """How well passages were found, and each question whose document was not."""
    console = console or Console(highlight=False)
    console.print(
        f"{report.questions} questions: recall@{report.k} {report.recall:.0%}, mean reciprocal rank {report.mrr:.2f}",
        markup=False,
    )
    for question, doc_id, found in report.missed:
        console.print(Text(f"not found: {doc_id} for {question!r}, but {', '.join(found) or 'nothing'}"))
    console.print("This says whether the right passage is found, not whether the model answers from it.")


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


def print_models(rows: Sequence[Mapping[str, str]], console: Console | None = None) -> None:
    """The landscape's checkpoints, the whole id always legible; sources and the rest are in data/landscape."""
    table = Table("model", "total (B)", "active (B)", "licence", "age")
    for column in table.columns:
        column.no_wrap, column.overflow = column.header not in ("model", "licence"), "fold"
    for row in rows:
        table.add_row(*(row[column.header] for column in table.columns))
    (console or Console()).print(table)


def print_runtimes(engines: Sequence[Engine], console: Console | None = None) -> None:
    """The engines that labkit starts, the remote APIs, and what each can do, in 100 columns."""
    console = console or Console(highlight=False)
    here = _plain_table("engine", "port", "health", "key variable", "needs", "tried")
    away = _plain_table("remote API", "base URL", "key variable", "tried")
    able = _plain_table("can it?", *(capability.replace("_", " ") for capability in CAPABILITIES))
    for engine in engines:
        key = engine.key_variable or "none"
        if engine.kind == REMOTE:
            away.add_row(engine.name, engine.base_url, key, engine.tried)
        else:
            port = "own" if engine.port is None else str(engine.port)
            here.add_row(engine.name, port, engine.health, key, engine.needs, engine.tried)
        able.add_row(engine.name, *(shown(getattr(engine, capability)) for capability in CAPABILITIES))
    for table in (here, away, able):
        console.print(table)
    console.print(f"{RUNTIME_WORDS}\n{banner('Runtimes', engines)}", markup=False)


def _plain_table(*headers: str) -> Table:
    """A table whose cells stay on one line, because people type what stands there."""
    table = Table(*headers, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in table.columns:
        column.no_wrap, column.overflow = True, "fold"
    return table


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


def sections(verification: Verification) -> list[tuple[str, Sequence[Finding]]]:
    named = {
        "Artifacts": verification.artifacts,
        "Cross-checks": verification.cross_checks,
        "Claims": verification.claims,
    }
    return [(title, findings) for title, findings in named.items() if findings]


def conclusion(verification: Verification) -> str:
    counts = [f"{_count(verification, verdict)} {verdict}" for verdict in Verdict]
    return f"{CONCLUSIONS[verification.exit_code]} ({', '.join(counts)})"


def _count(verification: Verification, verdict: Verdict) -> int:
    return sum(finding.verdict is verdict for finding in verification.findings)


def _to_do(verification: Verification) -> list[Finding]:
    """What needs an action, contradictions first; each action once."""
    by_action: dict[str, Finding] = {}
    worst_first = sorted(verification.findings, key=lambda finding: finding.verdict is not Verdict.CONTRADICTED)
    for finding in worst_first:
        if finding.next_action and (finding.required or finding.verdict is Verdict.CONTRADICTED):
            by_action.setdefault(finding.next_action, finding)
    return list(by_action.values())


def _table(title: str, findings: Sequence[Finding]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(title, max_width=27, overflow="fold")
    table.add_column("verdict", no_wrap=True, min_width=12)
    table.add_column("detail", overflow="fold")
    for finding in findings:
        table.add_row(
            Text(finding.name), Text(finding.verdict.value, style=STYLES[finding.verdict]), Text(finding.detail)
        )
    return table


@dataclass(frozen=True)
class LossPlot:
    """The loss curve as SVG coordinates: `lines` are (name, CSS class, polyline points), `ticks` the axes' numbers."""

    lines: tuple[tuple[str, str, str], ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    device: str


PLOT_WIDTH, PLOT_HEIGHT, PLOT_MARGIN = 640, 260, 44


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


def risk_table(folder: Path) -> list[dict]:
    """One row for each risk of eval_summary.json, with the ids that failed; empty when it cannot be read."""
    try:
        by_risk = read_json(folder / "eval_summary.json").get("by_risk")
    except LabError:
        return []
    if not isinstance(by_risk, dict):
        return []
    rows = []
    for risk, counts in by_risk.items():
        if isinstance(counts, dict):
            failed = counts.get("failed_ids")
            ids = ", ".join(map(str, failed)) if isinstance(failed, list) else ""
            rows.append({"risk": risk, "passed": counts.get("passed"), "total": counts.get("total"), "ids": ids})
    return rows


def notebooks(folder: Path) -> list[tuple[str, str]]:
    """(name, link) for each executed notebook in the pack."""
    found = sorted((folder / "notebooks").glob("*.ipynb"))
    return [(path.name, "notebooks/" + quote(path.name, errors="replace")) for path in found]


def write_report(folder: Path) -> Path:
    """Write report.html into the pack: claims first, then cross-checks and artifacts, the loss curve, the failures.

    The manifest does not list it, because it can be made again from the pack at any time. Raises LabError when there
    is no such folder, or it cannot be written to.
    """
    folder = Path(folder)
    verification = verify(folder)
    html = _template("report.html").render(
        verification=verification,
        conclusion=conclusion(verification),
        to_do=_to_do(verification),
        plot=loss_plot(_log_rows(folder)),
        size=(PLOT_WIDTH, PLOT_HEIGHT, PLOT_MARGIN),
        risks=risk_table(folder),
        notebooks=notebooks(folder),
        commit=_commit(folder),
        time=utc_now(),
    )
    write_atomically(folder / REPORT, _storable(html))
    return folder / REPORT


def _template(name: str) -> Template:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _storable(html: str) -> bytes:
    """UTF-8 without control characters, which a hostile file name may hold and HTML forbids."""
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "?", html).encode("utf-8", errors="replace")


def _log_rows(folder: Path) -> list[dict[str, str]]:
    try:
        return read_csv(folder / "openllm_gpu_training_run" / "training_log.csv")
    except LabError:
        return []


def _commit(folder: Path) -> str:
    try:
        return str(read_manifest(folder).get("git_commit", "unknown"))
    except LabError:
        return "unknown"
