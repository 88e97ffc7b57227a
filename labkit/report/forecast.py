"""A forecast in the terminal, and what came of it. Both are read as rows, so that a notebook shows the same."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.text import Text

from labkit.report.tables import plain_table


def print_rows(rows: Sequence[Mapping[str, str]], console: Console | None = None) -> None:
    """Rows with the same keys as a table whose cells stay on one line."""
    console = console or Console(highlight=False)
    if not rows:
        return
    table = plain_table(*rows[0])
    for row in rows:
        table.add_row(*map(Text, row.values()))
    console.print(table)
