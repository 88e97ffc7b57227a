"""The table lever by risk in the terminal."""

from rich.console import Console
from rich.text import Text

from labkit.levers.table import LeverTable
from labkit.report.tables import plain_table


def print_levers(table: LeverTable, console: Console | None = None) -> None:
    """How many cases of each group pass with each lever, and what each lever broke."""
    console = console or Console(highlight=False)
    rows = table.by_group()
    shown = plain_table(*rows[0])
    for row in rows:
        shown.add_row(*map(Text, row.values()))
    console.print(shown)
    for lever in table.levers:
        if lost := table.broken(lever):
            console.print(Text(f"{lever} broke {', '.join(lost)}"))
    if table.others:
        console.print(Text(f"left out, on another base than the plain run: {', '.join(table.others)}"))
    console.print(
        Text("Counts of these cases on this model: they say which lever to try, not what it is worth elsewhere.")
    )
