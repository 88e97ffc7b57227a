"""Commands for a machine that costs money by the hour: guard, tunnel, copy-back."""

from pathlib import Path
from typing import Annotated

import typer

from labkit.cli.app import app, open_pack, print_json

SshPortOption = Annotated[int | None, typer.Option(help="ssh's port there (default: that of ~/.ssh/config, or 22)")]
RentedRouteOption = Annotated[
    str | None, typer.Option("--route", help="the pack's (default: its own, else rented_gpu)")
]
IdentityOption = Annotated[str, typer.Option(help="ssh's private key file (default: that of ~/.ssh/config)")]


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
    out: Annotated[Path | None, typer.Option(help="the evidence pack's folder (default: evidence/rented_gpu)")] = None,
    route: RentedRouteOption = None,
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
    from labkit.evidence import MANIFEST
    from labkit.layout import evidence_folder

    folder = folder or evidence_folder(route or "rented_gpu")
    return open_pack(folder, route or (None if (folder / MANIFEST).exists() else "rented_gpu"))


@app.command()
def tunnel(
    host: Annotated[str, typer.Argument(help="user@host, or a Host of ~/.ssh/config")],
    port: Annotated[int, typer.Option(help="port here")] = 8000,
    remote_port: Annotated[int, typer.Option(help="port of the server there, on its loopback")] = 8000,
    ssh_port: SshPortOption = None,
    identity: IdentityOption = "",
    model: Annotated[str | None, typer.Option(help="model to ask for (default: the first that it lists)")] = None,
    once: Annotated[bool, typer.Option("--once", help="close it after the smoke test")] = False,
    tls: Annotated[
        bool, typer.Option("--tls", help="it speaks TLS there, as a gate does; SSL_CERT_FILE names its certificate")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="also write the test into this pack")] = None,
    route: RentedRouteOption = None,
) -> None:
    """Open an ssh tunnel to a server elsewhere, test it through the tunnel, and hold it open until Ctrl+C.

    With --out the test is written into that pack as api_smoke_test.json.
    """
    import shlex

    from labkit.remote.host import Host
    from labkit.remote.tunnel import open_tunnel, tunnel_command, wait_for_end
    from labkit.serving.smoke import smoke_test

    command = tunnel_command(Host(host, ssh_port, identity), port, remote_port)
    here = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    print(shlex.join(command), flush=True)
    with open_tunnel(command, port) as ssh:
        proof = smoke_test(here, model)
        if out:
            _rented_pack(out, route).write_json("api_smoke_test.json", proof, "13.2")
        print_json(proof)
        if not once:
            wait_for_end(ssh, f"open: {here}/v1 is {host}; Ctrl+C closes it")


@app.command()
def copy_back(
    source: Annotated[str, typer.Argument(help="user@host:evidence/rented_gpu, or a folder")],
    to: Annotated[Path | None, typer.Option(help="folder here (default: evidence/ and the same name)")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="replace what is there, by a pack that is whole")] = False,
    ssh_port: SshPortOption = None,
    identity: IdentityOption = "",
) -> None:
    """Copy a pack from another machine, and check every file against the manifest before it counts as here."""
    from labkit.layout import ROOT
    from labkit.remote.copy_back import copy_back as fetch

    target = to or ROOT / "evidence" / source.rstrip("/").rpartition("/")[2].rpartition(":")[2]
    copied = fetch(source, target, replace, ssh_port, identity)
    print(f"{copied.files} files, {copied.bytes:,} bytes, each as the manifest of {copied.route} says")
    if copied.unrecorded:
        print(f"not in the manifest, so nothing vouches for them: {', '.join(copied.unrecorded)}")
    print(f"next: labkit verify {to or f'evidence/{target.name}'}")
