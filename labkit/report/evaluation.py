"""Evaluation, comparison and retrieval in the terminal."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.text import Text

from labkit.adaptation.rag import RetrievalReport
from labkit.evaluation.compare import Comparison
from labkit.report.tables import plain_table, wrapping_table

CHANGE_STYLES = {"broken": "bold red", "fixed": "green", "still failing": "yellow", "still passing": "dim"}


def print_failures(summary: Mapping, console: Console | None = None) -> None:
    """eval_summary.json as two tables: the counts for each risk, and each kind of failure with an example."""
    console = console or Console(highlight=False)
    repeats = summary.get("repeats", 1)
    passed = ["passed"] if repeats == 1 else [f"passed all {repeats} times", "answers passed"]
    counts = wrapping_table("risk", *passed, "failed cases")
    for risk, found in summary["by_risk"].items():
        rate = [] if repeats == 1 else [_rate(found)]
        failed = ", ".join(found["failed_ids"]) or "none"
        counts.add_row(Text(risk), f"{found['passed']} of {found['total']}", *rate, Text(failed))
    console.print(counts)
    if repeats > 1 and not summary["settings"]["temperature"]:
        note = "At temperature 0 the seed changes nothing: repeats show how far the server itself varies."
        console.print(Text(note, style="bold"))
    if judge := summary.get("judge"):
        console.print(Text(_agreement(judge)))
    if not summary["failures"]:
        return
    failures = wrapping_table("risk", "check", "count", "example")
    for row in summary["failures"]:
        failures.add_row(Text(row["risk"]), Text(row["check"]), str(row["count"]), Text(row["example"]))
    console.print(failures)


def _agreement(judge: Mapping) -> str:
    """What a judge said, beside the checks."""
    apart = [*judge["only_judge_passes"], *judge["only_checks_pass"]]
    told = f"The judge {judge['model']} ({judge['prompt']}) agrees with the checks on {judge['agrees']} of "
    told += f"{judge['graded']} answers; {judge['no_grade']} have no grade."
    return f"{told} Look at {', '.join(apart)}." if apart else told


def _rate(found: Mapping) -> str:
    """Every answer of a risk counted, with the 95 % interval."""
    rate = found.get("pass_rate")
    if rate is None:
        return "none asked"
    return f"{rate['passed']} of {rate['total']}, {rate['low']:.0%} to {rate['high']:.0%}"


def print_changes(comparison: Comparison, console: Console | None = None) -> None:
    """The cases whose verdict changed, the counts for each risk, and the sentence that they allow."""
    console = console or Console(highlight=False)
    console.print(Text(f"{comparison.after} against {comparison.before}", style="bold"))
    if comparison.setting:
        console.print(Text(f"changed: {comparison.setting}"))
    cases = wrapping_table("case", "risk", "change", "answer now, and why")
    for found in comparison.changes:
        if found.change != "still passing":
            style = CHANGE_STYLES[found.change]
            words = Text(f"{found.after!r}: {found.reason}")
            cases.add_row(Text(found.case_id), Text(found.risk), Text(found.change, style=style), words)
    if cases.rows:
        console.print(cases)
    counts = plain_table("risk", *CHANGE_STYLES)
    for risk, row in comparison.by_risk().items():
        counts.add_row(Text(risk), *(str(row[change]) for change in CHANGE_STYLES))
    console.print(counts)
    console.print(Text(comparison.sentence, style="bold"))


def print_pass_rates(rows: Sequence[Mapping], console: Console | None = None) -> None:
    """Cases passed for each run and risk, with the 95 % interval of the rate: few cases say little."""
    table = plain_table("run", "risk", "passed", "95 % interval")
    for row in rows:
        interval = f"{row['low']:.0%} to {row['high']:.0%}"
        table.add_row(Text(row["run"]), Text(row["risk"]), f"{row['passed']} of {row['total']}", interval)
    (console or Console(highlight=False)).print(table)


def print_speeds(rows: Sequence[Mapping], console: Console | None = None) -> None:
    """Tokens in a second of a request for each run: a lever has a price too. Nothing where no run records it."""
    if all(row["tokens_per_second"] is None for row in rows):
        return
    table = plain_table("run", "tokens per second", "of JSON forms")
    for row in rows:
        told = ("unknown" if row[key] is None else f"{row[key]:.1f}" for key in ("tokens_per_second", "of_forms"))
        table.add_row(Text(row["run"]), *told)
    (console or Console(highlight=False)).print(table)


def print_sources(answer: str, sources: Sequence[Mapping], console: Console | None = None) -> None:
    """An answer from documents, and what it may come from."""
    console = console or Console(highlight=False)
    console.print(Text(answer))
    if not sources:
        console.print(
            Text("No passage fits the question: the answer comes from the model's weights alone.", style="bold")
        )
        return
    table = wrapping_table("source", "cited", "score", "text")
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
