"""The two shapes of the tables that commands print."""

from rich import box
from rich.table import Table


def wrapping_table(*headers: str) -> Table:
    """A table whose cells go on in the next line, because they hold sentences."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in headers:
        table.add_column(header, overflow="fold")
    return table


def plain_table(*headers: str) -> Table:
    """A table whose cells stay on one line, because people type what stands there."""
    table = Table(*headers, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in table.columns:
        column.no_wrap, column.overflow = True, "fold"
    return table
