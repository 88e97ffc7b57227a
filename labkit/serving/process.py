"""A labkit server as a process of this machine: its port, its life in the foreground, and the file it leaves meanwhile.

`.labkit/server-<port>.json` says which process serves the port, so that `labkit stop` can end that process and no
other. A clean exit removes the file.
"""

import contextlib
import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import psutil

from labkit.endpoint import KEY_VARIABLE, key_from_environment
from labkit.errors import LabError
from labkit.evidence import json_text, read_json, utc_now, write_atomically
from labkit.layout import STATE
from labkit.serving.contract import ServerSettings

DRAIN_SECONDS = 5  # what answers under way get to finish in after Ctrl+C or SIGTERM


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
    started: str
    limits: dict

    def process(self) -> psutil.Process | None:
        """The server's process, or None when it has ended; a later process with the same pid is not it."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.create_time) < 1
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


def state_file(port: int) -> Path:
    return STATE / f"server-{port}.json"


def running_server(port: int) -> RunningServer | None:
    """The labkit server that claims `port`, or None. Raises LabError for a state file that cannot be read."""
    path = state_file(port)
    if not path.exists():
        return None
    values = read_json(path)
    if set(values) != {field.name for field in fields(RunningServer)}:
        raise LabError(f"{path.name} is not a state file of this version", "delete it and end the server by hand")
    return RunningServer(**values)


def claim_port(host: str, port: int) -> socket.socket:
    """A socket that listens on `host`:`port`. Raises LabError when it is taken, forbidden or not of this machine."""
    if not 1 <= port <= 65535:
        raise LabError(f"{port} is not a port", "choose a --port from 1024 to 65535")
    listener = None
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        # On Windows SO_REUSEADDR would let two servers share a port.
        exclusive = getattr(socket, "SO_EXCLUSIVEADDRUSE", None)
        listener.setsockopt(socket.SOL_SOCKET, exclusive or socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
        return listener
    except OSError as error:
        if listener is not None:
            listener.close()
        raise _port_error(host, port, error) from None


def _port_error(host: str, port: int, error: OSError) -> LabError:
    if error.errno == errno.EADDRINUSE or (sys.platform == "win32" and port_open(host, port)):
        ours = running_server(port)
        if ours is not None and ours.process() is not None:
            what = f"port {port} is already in use by a labkit server that serves {ours.model}"
            return LabError(what, f"choose another --port or stop it with `labkit stop --port {port}`")
        what = f"port {port} is already in use by another program"
        return LabError(what, f"choose another --port, or end that program; `labkit stop --port {port}` ends ours only")
    if isinstance(error, PermissionError):
        return LabError(f"this user may not open port {port}", "choose a --port from 1024 to 65535")
    return LabError(f"cannot listen on {host} port {port}: {error.strerror or error}", "use --host 127.0.0.1")


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def port_open(host: str, port: int) -> bool:
    """Whether something accepts connections on `port` of this machine."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        socket.create_connection((reachable, port), timeout=1).close()
        return True
    except OSError:
        return False


def with_key(settings: ServerSettings) -> ServerSettings:
    """`settings` with the key of LABKIT_API_KEY. Raises LabError for an address that others reach and no key."""
    settings = replace(settings, api_key=settings.api_key or key_from_environment())
    if not settings.loopback and not settings.api_key:
        raise LabError(
            f"the host {settings.host} can be reached from other machines and no API key is set",
            f"set the variable {KEY_VARIABLE} to a long random text, or use --host 127.0.0.1",
        )
    return settings


def serve(settings: ServerSettings) -> None:
    """Serve until Ctrl+C or SIGTERM, then finish the answers under way and return.

    Raises LabError before loading anything when the port is taken or the host needs a key, and after that when the
    model cannot be loaded.
    """
    settings = with_key(settings)
    claim_port(settings.host, settings.port).close()
    # Here and not above, so that a taken port is reported without the seconds that torch takes to load.
    import uvicorn

    from labkit.generation import load_chat_model
    from labkit.serving.app import create_app

    logging.basicConfig(format="%(levelname)s: %(name)s: %(message)s")
    logging.getLogger("labkit").setLevel(logging.INFO)
    model = load_chat_model(settings.model, settings.device)
    app = create_app(model, settings)
    config = uvicorn.Config(app, timeout_graceful_shutdown=DRAIN_SECONDS, server_header=False)
    with (
        contextlib.closing(claim_port(settings.host, settings.port)) as listener,
        _announced(app.state.settings, model),
    ):
        print(f"serving {model.name} on {model.device} at {settings.base_url}  (Ctrl+C stops it)", flush=True)
        uvicorn.Server(config).run(sockets=[listener])


@contextlib.contextmanager
def _announced(settings: ServerSettings, model) -> Iterator[None]:
    """The state file while the body runs. uvicorn drains and then raises its signal again: that ends the body here."""
    state = RunningServer(
        pid=os.getpid(),
        create_time=psutil.Process().create_time(),
        host=settings.host,
        port=settings.port,
        base_url=settings.base_url,
        model=model.name,
        revision=model.revision,
        device=model.device,
        started=utc_now(),
        limits=asdict(settings.limits),
    )
    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        write_atomically(state_file(settings.port), json_text(asdict(state)).encode("utf-8"))
        yield
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr, flush=True)
    finally:
        state_file(settings.port).unlink(missing_ok=True)
        signal.signal(signal.SIGTERM, before)
