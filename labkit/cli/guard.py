"""Commands for a machine that costs money by the hour: guard, tunnel, copy-back."""

from pathlib import Path
from typing import Annotated

import typer

from labkit.cli.app import OutOption, RouteOption, app


@app.command()
def guard(
    command: Annotated[list[str], typer.Argument(help="the command, after --", metavar="-- COMMAND")],
    hourly: Annotated[float, typer.Option(help="what the machine costs an hour, in US dollars")] = 0.0,
    budget: Annotated[float, typer.Option(help="what may be spent, in US dollars")] = 0.0,
    stop_at: Annotated[str, typer.Option(help="18:30 (the next one here) or 2026-11-27T18:30+00:00")] = "",
    grace: Annotated[float, typer.Option(help="seconds between SIGTERM and SIGKILL")] = 4.0,
    stop_hook: Annotated[str, typer.Option(help="shell command after the end, such as a provider's stop command")] = "",
    hook_seconds: Annotated[float, typer.Option(help="what the hook may take")] = 120.0,
    port: Annotated[
        list[int] | None, typer.Option(help="one that must be closed at the end, beside those seen")
    ] = None,
    every: Annotated[float, typer.Option(help="seconds between two lines of time and money")] = 60.0,
    out: OutOption = None,
    route: RouteOption = None,
) -> None:
    """Run a command under a money limit, end it at the limit, and write shutdown_proof.json.

    The exit code is the command's, 124 at the limit, 130 when you stopped it.
    """
    from datetime import UTC, datetime

    from labkit.guard.limits import SpendingLimits, parse_stop_at
    from labkit.guard.start import guarded
    from labkit.guard.watch import Task

    moment = parse_stop_at(stop_at, datetime.now(UTC)) if stop_at else None
    limits = SpendingLimits(hourly, budget, moment)
    pack = _rented_pack(out, route)
    how = {"grace": grace, "hook": stop_hook, "hook_seconds": hook_seconds, "every": every}
    task = Task(tuple(command), limits, pack.folder, pack.route, ports=tuple(port or ()), **how)
    raise typer.Exit(guarded(task))


def _rented_pack(folder: Path | None, route: str | None):
    """The pack of a rented machine, unless the folder holds one of another route already."""
    from labkit.cli.app import open_pack
    from labkit.evidence import MANIFEST
    from labkit.layout import evidence_folder

    folder = folder or evidence_folder(route or "rented_gpu")
    return open_pack(folder, route or (None if (folder / MANIFEST).exists() else "rented_gpu"))
