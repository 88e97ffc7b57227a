"""The quality checklist of a conversion in the terminal."""

from rich.console import Console
from rich.text import Text

from labkit.edge.measures import Checklist
from labkit.report.tables import wrapping_table


def print_checklist(found: Checklist, console: Console | None = None) -> None:
    """A line for each item: whether it holds, what was measured, and what is allowed."""
    console = console or Console(highlight=False)
    table = wrapping_table("item", "holds", "measured", "allowed")
    for item in found.items:
        table.add_row(*map(Text, (item.name, "yes" if item.passed else "NO", item.measured, item.limit)))
    console.print(table)
    console.print(
        Text(
            f"{found.model} ({found.backend}, {found.dtype}) on this machine. Latency and memory are of this process, "
            "beside whatever else the machine was doing."
        )
    )
