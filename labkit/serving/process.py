"""A labkit server in the foreground of its process: keys, model, signals, and the proof of its end."""

import contextlib
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import psutil

from labkit.endpoint import KEY_VARIABLE, key_from_environment
from labkit.errors import LabError
from labkit.evidence import utc_now
from labkit.serving.contract import DRAIN_SECONDS, ServerSettings
from labkit.serving.ports import claim_port, port_open
from labkit.serving.proof import check_proof_options, shutdown_proof
from labkit.serving.running import leave_proof, record_server, running_server, state_file

NO_MEMORY = re.compile(r"out of memory|(can't|cannot) allocate memory|not enough memory|unable to mmap", re.I)


def with_keys(settings: ServerSettings, key_file: str = "") -> ServerSettings:
    """`settings` with the keys of LABKIT_API_KEY and of `key_file`, which has one on each line.

    Raises LabError for a file that cannot be read or holds no key, and for an address that others reach and no key.
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
    keys = [line.strip() for line in text.splitlines() if line.strip()]
    if key_file and not keys:  # a server that asks for no key is not what was meant
        raise LabError(f"the key file {Path(key_file).name} holds no key", "write one key on each line")
    return keys


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
    from labkit.generation import Sampling
    from labkit.serving.app import create_app
    from labkit.serving.gate import JsonLines

    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.getLogger("labkit").addHandler(handler)
    logging.getLogger("labkit").setLevel(logging.INFO)
    model = load_model(settings)
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
            adapters=dict(settings.adapters),
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
