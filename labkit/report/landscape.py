"""The landscape's tables in the terminal."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from labkit.landscape.tables import banner, shown
from labkit.report.tables import plain_table
from labkit.serving.engines import CAPABILITIES, REMOTE, Engine

RUNTIME_WORDS = """\
An engine's exact command:  labkit serve --runtime ENGINE --model MODEL --dry-run
A remote API, the same test:  LABKIT_API_KEY="$MISTRAL_API_KEY" \\
    labkit smoke --base-url https://api.mistral.ai/v1 --model MODEL"""


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
    here = plain_table("engine", "port", "health", "key variable", "needs", "tried")
    away = plain_table("remote API", "base URL", "key variable", "tried")
    able = plain_table("can it?", *(capability.replace("_", " ") for capability in CAPABILITIES))
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
