"""A labkit server as a process of this machine: its port, its life in the foreground, and the file it leaves meanwhile.

`.labkit/server-<port>.json` says which process serves the port, so that `labkit stop` can end that process and no
other. A clean exit removes the file and leaves `.labkit/shutdown-<port>.json`, what the process can prove of its end.
"""

import contextlib
import errno
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from labkit.endpoint import KEY_VARIABLE, key_from_environment
from labkit.errors import LabError
from labkit.evidence import json_text, read_json, utc_now, write_atomically
from labkit.layout import STATE
from labkit.serving.contract import DRAIN_SECONDS, ServerSettings
from labkit.serving.proof import check_proof_options, shutdown_proof

NO_MEMORY = re.compile(r"out of memory|(can't|cannot) allocate memory|not enough memory|unable to mmap", re.I)


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
    """The server that labkit started at `base_url` of this machine, by its state file; None for any other."""
    address = urlsplit(base_url)
    if address.hostname not in ("127.0.0.1", "localhost", "::1"):
        return None
    server = running_server(address.port or 80)
    return server if server is not None and server.process() is not None else None


def recorded_model(base_url: str) -> str | None:
    """The model of our own server at `base_url`: some engines list others beside it."""
    server = own_server(base_url)
    return server.model if server else None


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


def server_pid(base_url: str) -> int | None:
    """The process of our own server at `base_url`; None for any other server: nothing guesses."""
    server = own_server(base_url)
    return server.pid if server else None


def claim_port(host: str, port: int) -> socket.socket:
    """A socket that listens on `host`:`port`. Raises LabError when it is taken, forbidden or not of this machine."""
    if not 1 <= port <= 65535:
        raise LabError(f"{port} is not a port", "choose a --port from 1024 to 65535")
    listener = None
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # asyncio sends small parts at once only where a socket names its protocol; else each answer waits 40 ms.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
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


def with_keys(settings: ServerSettings, key_file: str = "") -> ServerSettings:
    """`settings` with the keys of LABKIT_API_KEY and of `key_file`, which has one on each line.

    Raises LabError for a file that cannot be read, and for an address that others reach and no key.
    """
    keys = (*settings.api_keys, key_from_environment(), *_read_keys(key_file))
    settings = replace(settings, api_keys=tuple(dict.fromkeys(key for key in keys if key)))
    if not settings.loopback and not settings.api_keys:
        raise LabError(
            f"the host {settings.host} can be reached from other machines and no API key is set",
            f"set the variable {KEY_VARIABLE} to a long random text, or use --host 127.0.0.1",
        )
    return settings


def _read_keys(key_file: str) -> list[str]:
    try:
        text = Path(key_file).read_text(encoding="utf-8") if key_file else ""
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        what = f"the key file {Path(key_file).name} cannot be read: {reason}"
        raise LabError(what, "give --api-key-file a text file") from None
    return [line.strip() for line in text.splitlines()]


def leave_proof(said: dict, copy: Path | None) -> None:
    """Write the proof of a server's end for `labkit stop`, and to `copy` where one is named."""
    for path in filter(None, (proof_file(said["port"]), copy)):
        write_atomically(path, json_text(said).encode("utf-8"))


def serve(settings: ServerSettings, key_file: str = "", proof: Path | None = None, hourly_usd: float = 0.0) -> None:
    """Serve until Ctrl+C or SIGTERM, then finish the answers under way, leave the proof of it and return.

    The port answers at once, and /health says 503 until the model is warm. `proof` is a second place for the proof,
    `hourly_usd` what the machine costs. Raises LabError before anything when the port is taken or the host needs a key,
    and later when the model cannot be loaded or the proof not be written.
    """
    settings = with_keys(settings, key_file)
    check_proof_options(proof, hourly_usd)
    listener, begun = claim_port(settings.host, settings.port), utc_now()
    from labkit.serving.connections import Server
    from labkit.serving.entrance import Entrance

    def load():
        app = _loaded_app(settings)
        if not server.should_exit:
            server.traffic = app.state.metrics.traffic
            _record(app.state.settings, app.state.model)
        return app

    def ready(app) -> None:
        model = app.state.model
        _say(f"backend {model.backend}, {model.dtype}: {model.backend_reason}", sys.stdout)
        _say(f"serving {model.name} on {model.device} at {settings.base_url}  (Ctrl+C stops it)", sys.stdout)

    def ended() -> None:
        server.should_exit = True

    entrance = Entrance(load, ready, ended)
    server = Server(entrance, DRAIN_SECONDS)
    with contextlib.closing(listener), _state_taken_away(settings.port):
        entrance.begin()
        with _until_signalled():
            server.run(sockets=[listener])
        if server.ended_by:
            leave_proof(_own_proof(server, settings, begun, listener, hourly_usd), proof)
    if entrance.failure:
        raise entrance.failure


def _own_proof(server, settings: ServerSettings, begun: str, listener: socket.socket, hourly_usd: float) -> dict:
    """What this process can say of its own end; by `create_time` `labkit stop` finds out later that it is gone.

    A server counts from when it was ready, and one that never was from when it `begun`.
    """
    state = running_server(settings.port)
    ready = state is not None and state.pid == os.getpid()
    return shutdown_proof(
        pid=os.getpid(),
        port=settings.port,
        model=state.model if ready else Path(settings.model).name,
        started=state.started if ready else begun,
        signal=server.ended_by,
        port_closed=listener.fileno() == -1 and not port_open(settings.host, settings.port),
        hourly_usd=hourly_usd,
        requests_served=server.traffic.answered if ready else 0,
        answers_drained=server.drained,
        answers_cut=server.traffic.cut if ready else 0,
        create_time=psutil.Process().create_time(),
    )


def _loaded_app(settings: ServerSettings):
    """The app around its model, which has made one token: the first is many times slower than the rest."""
    import torch

    from labkit.generation import Sampling, threads_for
    from labkit.serving.app import create_app
    from labkit.serving.gate import JsonLines

    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.getLogger("labkit").addHandler(handler)
    logging.getLogger("labkit").setLevel(logging.INFO)
    model = load_model(settings)
    if model.device == "cpu":
        torch.set_num_threads(threads_for(model.parameter_count))
    model.chat([{"role": "user", "content": "Hello"}], Sampling(max_tokens=1))
    return create_app(model, settings)


def load_model(settings: ServerSettings):
    """The ChatModel of `settings`. Raises LabError, also for a model that the memory does not hold.

    Python, torch, the device and safetensors each tell that in an error class of their own; the words are what they
    have in common.
    """
    from labkit.generation import load_chat_model

    try:
        return load_chat_model(
            settings.model,
            settings.device,
            settings.dtype,
            settings.backend,
            settings.limits.concurrency,
            settings.revision,
        )
    except (LabError, MemoryError, RuntimeError) as error:
        cause = error.__cause__ or error
        if not isinstance(cause, MemoryError) and not NO_MEMORY.search(str(cause)):
            raise
        told = (str(cause).strip() or "MemoryError").splitlines()[0]
        raise LabError(
            f"the memory that this process may use does not hold the model {Path(settings.model).name}: {told}",
            "serve a smaller model, or raise the limit or the memory of the machine",
        ) from error


def _record(settings: ServerSettings, model) -> None:
    """Write the state file, before the service is ready: whoever finds it ready can stop it."""
    record_server(
        os.getpid(),
        host=settings.host,
        port=settings.port,
        base_url=settings.base_url,
        model=model.name,
        revision=model.revision,
        device=model.device,
        backend=model.backend,
        started=utc_now(),
        limits=asdict(settings.limits),
    )


def _say(text: str, stream) -> None:
    """Print a line; a log that takes no more (full disk, closed pipe) is no reason to stop answering."""
    with contextlib.suppress(OSError):
        print(text, file=stream, flush=True)


@contextlib.contextmanager
def _until_signalled() -> Iterator[None]:
    """End the body at SIGINT or SIGTERM, also one that was ignored; uvicorn drains and then raises its signal again."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    except KeyboardInterrupt:
        _say("stopped", sys.stderr)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _state_taken_away(port: int) -> Iterator[None]:
    try:
        yield
    finally:
        state_file(port).unlink(missing_ok=True)
