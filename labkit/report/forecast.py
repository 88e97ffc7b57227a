"""Forecasts in the terminal."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

SENTENCES = ("unit", "why")  # columns whose cells go on in the next line


def print_rows(rows: Sequence[Mapping[str, str]], console: Console | None = None) -> None:
    """Rows with the same keys as a table in 80 columns: numbers whole, long headers in several lines."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for name in rows[0]:
        table.add_column(name.replace(" ", "\n"), no_wrap=name not in SENTENCES, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row.values()))
    (console or Console(highlight=False)).print(table)
