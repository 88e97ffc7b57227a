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
    console = console or Console()
    table = Table("model, licence, age of the facts", "size, memory, use", show_lines=True)
    table.columns[0].overflow = "fold"
    for row in rows:
        ages = f"sizes {row['age']}; licence {row['licence age']}; runtimes {row['runtime age']}"
        active = f", {row['active (B)']} B active" if row["kind"] == "moe" else ""
        sizes = f"{row['total (B)']} B{active}\n{row['needs (GB)']} GB\n{row['context']} tokens"
        use = f"commercial: {row['commercial']}"
        table.add_row(f"{row['model']}\n{row['licence']}\n{ages}", f"{sizes}\n{use}")
    console.print(table)
    words = "GB: weights, cache, activations and overhead at 4,096 tokens."
    console.print(
        f"{len(rows)} models. {words} What is unknown says verify; no filter takes it for a yes.", markup=False
    )


def print_stale(rows: Sequence[Mapping[str, str]], summary: Sequence[str], console: Console | None = None) -> None:
    """Expired rows, one a line with the place to look them up again, then how many in each table."""
    console = console or Console(highlight=False)
    for row in rows:
        line = f"{row['table']}: {row['row']} ({row['age']}) {row['source']}"
        console.print(line, markup=False, soft_wrap=True)
    for line in summary or ["no row of any table has expired"]:
        console.print(f"warning: {line}" if rows else line, markup=False)


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
