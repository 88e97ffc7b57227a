"""Which process serves which port of this machine: what a server leaves while it runs, and what it says at its end.

`.labkit/server-<port>.json` says which process serves the port, so that `labkit stop` can end that process and no
other. A clean exit removes the file and leaves `.labkit/shutdown-<port>.json`, what the process can prove of its end.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from labkit.endpoint import root_url
from labkit.errors import LabError
from labkit.evidence import json_text, read_json, recorded, write_atomically
from labkit.layout import STATE


@dataclass(frozen=True)
class RunningServer:
    """What a running server leaves in its state file. `create_time` is psutil's, seconds since the epoch."""

    pid: int
    create_time: float
    host: str
    port: int
    base_url: str
    model: str
    revision: str
    device: str
    backend: str
    started: str
    limits: dict

    def process(self) -> psutil.Process | None:
        """The server's process, or None when it has ended."""
        return process_of(self.pid, self.create_time)


def process_of(pid: int, create_time: float) -> psutil.Process | None:
    """The process, or None when it has ended; a later process with the same pid is not it."""
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - create_time) < 1
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def record_server(pid: int, **facts: object) -> None:
    """Write the state file of the server with process `pid`; `facts` are the other fields of RunningServer.

    What an earlier server on the port left of its end says nothing of this one's, and goes.
    """
    state = RunningServer(pid=pid, create_time=psutil.Process(pid).create_time(), **facts)
    proof_file(state.port).unlink(missing_ok=True)
    write_atomically(state_file(state.port), json_text(asdict(state)).encode("utf-8"))


def state_file(port: int) -> Path:
    return STATE / f"server-{port}.json"


def proof_file(port: int) -> Path:
    """What the last server on `port` said of its end."""
    return STATE / f"shutdown-{port}.json"


def running_server(port: int) -> RunningServer | None:
    """The labkit server that claims `port`, or None. Raises LabError for a state file that cannot be read."""
    path = state_file(port)
    if not path.exists():
        return None
    values = read_json(path)
    if set(values) != {field.name for field in fields(RunningServer)}:
        raise LabError(f"{path.name} is not a state file of this version", "delete it and end the server by hand")
    return RunningServer(**values)


def own_server(base_url: str) -> RunningServer | None:
    """The server that labkit started at `base_url` of this machine, by its state file; None for any other.

    Raises LabError for what is no URL.
    """
    address = urlsplit(root_url(base_url))
    if address.hostname not in ("127.0.0.1", "localhost", "::1"):
        return None
    server = running_server(address.port or 80)
    return server if server is not None and server.process() is not None else None


def recorded_model(base_url: str) -> str | None:
    """The model of our own server at `base_url`: some engines list others beside it."""
    server = own_server(base_url)
    return server.model if server else None


def server_pid(base_url: str) -> int | None:
    """The process of our own server at `base_url`; None for any other server: nothing guesses."""
    server = own_server(base_url)
    return server.pid if server else None


def children_of(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def end_children(children: Sequence[psutil.Process]) -> bool:
    """End what a server started and left behind, such as workers that hold GPU memory. Whether all of it is gone."""
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    return not psutil.wait_procs(children, timeout=5)[1]


def leave_proof(said: dict, copy: Path | None) -> None:
    """Write the proof of a server's end for `labkit stop`, and to `copy` where one is named."""
    content = json_text(said).encode("utf-8")
    write_atomically(proof_file(said["port"]), content)
    if copy:
        with recorded(copy, "13.4"):
            write_atomically(copy, content)
