"""What the doctor found, in the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from labkit.doctor import Diagnosis, Finding, State, exit_code
from labkit.landscape.tables import banner
from labkit.report.tables import wrapping_table

STYLES = {State.OK: "green", State.PROBLEM: "bold red", State.LIMIT: "yellow", State.NOT_HERE: "dim"}


def print_diagnoses(diagnoses: Sequence[Diagnosis], console: Console | None = None) -> None:
    """A row for each symptom: what to look at first, what this machine answers, and what to do when that fails."""
    console = console or Console(highlight=False)
    table = wrapping_table("symptom", "first check", "on this machine", "fallback")
    for one in diagnoses:
        seen = Text("\n").join(map(_line, one.findings))
        table.add_row(Text(one.symptom.title), Text(one.symptom.first_check), seen, Text(one.symptom.fallback))
        table.add_section()
    console.print(table)
    console.print(Text(banner("Troubleshooting", [one.symptom for one in diagnoses])))
    steps = {finding.check: finding for one in diagnoses for finding in one.findings if finding.next_step}
    for finding in steps.values():
        console.print(Text(f"{finding.check}: {finding.next_step}"))
    if not exit_code(diagnoses):
        console.print(
            Text("No check found a problem. What no program can see is left to the columns first check and fallback.")
        )


def _line(finding: Finding) -> Text:
    line = Text(f"{finding.state} ", style=STYLES[finding.state])
    return line.append(f"{finding.check}: {finding.seen}", style="none")
