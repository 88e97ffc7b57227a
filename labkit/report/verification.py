"""Verification in the terminal."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from labkit.report.conclusion import actions, conclusion, sections
from labkit.verification import Finding, Verdict, Verification

STYLES = {Verdict.SUPPORTED: "green", Verdict.NOT_YET: "yellow", Verdict.CONTRADICTED: "bold red"}


def print_verification(verification: Verification, console: Console | None = None) -> None:
    """The verification as tables that read well in 80 columns; colour appears only where `console` is a terminal."""
    console = console or Console(highlight=False)
    console.print(f"Pack {escape(verification.pack)}, route {escape(verification.route)}", highlight=False)
    for title, findings in sections(verification):
        console.print(_table(title, findings))
    for finding in actions(verification):
        console.print(Text.assemble((f"next for {finding.name}: ", "bold"), finding.next_action))
    console.print(Text(conclusion(verification), style="bold"))


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
