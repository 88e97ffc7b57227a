"""Starting servers as watched child processes: our own, and the engines of engines.py by the same means."""

import atexit
import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO

import psutil

from labkit.endpoint import KEY_VARIABLE, read_health, read_json_page
from labkit.errors import LabError
from labkit.evidence import utc_now
from labkit.layout import ROOT, STATE, without_paths
from labkit.serving.contract import Limits, ServerSettings
from labkit.serving.engines import SERVICE, Engine, Launch
from labkit.serving.ports import claim_port
from labkit.serving.process import with_keys
from labkit.serving.proof import check_proof_options
from labkit.serving.running import children_of, end_children, leave_proof, proof_file, record_server, state_file
from labkit.serving.shutdown import stop_server

SERVER_MODULE = "labkit.serving"
ENGINE_SECONDS = 900  # what a large model gets to load in
STOPPED = {0, -signal.SIGINT, -signal.SIGTERM, signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGTERM}  # asked to


@dataclass(frozen=True)
class ServerHandle:
    """A server that `start_server` started. Leaving a `with` block, or the interpreter, ends it."""

    base_url: str
    port: int
    model: str
    health: dict
    log: Path
    process: subprocess.Popen

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self, hourly_usd: float = 0.0, grace: float = 10) -> dict:
        """Stop the server and prove it: the content of shutdown_proof.json. Raises LabError when it has ended."""
        proof = stop_server(self.port, hourly_usd, grace)
        self._end()
        return proof

    def _end(self) -> None:
        _end(self.process, self.port)
        atexit.unregister(self._end)

    def __enter__(self) -> "ServerHandle":
        return self

    def __exit__(self, *_) -> None:
        self._end()


def start_server(
    model: str = "mini-instruct",
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "auto",
    limits: Limits | None = None,
    log: Path | None = None,
    timeout: float = 90,
    api_key: str = "",
    backend: str = "auto",
    dtype: str = "auto",
    adapters: Mapping[str, Path] | None = None,
) -> ServerHandle:
    """Start `labkit serve` as a child process and return when its /health is ok, within `timeout` seconds.

    The child's output goes to `log` (default .labkit/server-<port>.log); its key is `api_key`, else LABKIT_API_KEY.
    `adapters` (name to folder) are served beside the model, which then runs through transformers.
    Raises LabError with the child's own reason when it does not come up; then nothing is left running.
    """
    keys = (api_key,) if api_key else ()
    beside = tuple((name, str(folder)) for name, folder in (adapters or {}).items())
    how = {"backend": backend, "dtype": dtype, "adapters": beside}
    settings = with_keys(ServerSettings(model, host, port, device, limits or Limits(), keys, **how))
    claim_port(host, port).close()
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    key = next(iter(settings.api_keys), "")
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", KEY_VARIABLE: key}
    log = _log_of(port, log)
    process = _popen([sys.executable, "-m", SERVER_MODULE, *_options(settings)], environment, log)
    with _ended_on_error(process, port):
        health = _wait_until_healthy(process, lambda: _own_health(settings.base_url), log, timeout)
    return _handle(settings.base_url, port, health["model"], health, log, process)


def start_engine(launch: Launch, log: Path | None = None, timeout: float = ENGINE_SECONDS) -> ServerHandle:
    """Start an engine as a child process and return when its health path answers, within `timeout` seconds.

    Leaves the state file that `labkit stop`, `smoke` and `bench` look for. The child has a session of its own, so that
    Ctrl+C in a terminal reaches it once, from here. Raises LabError when its program is not installed, and with its
    last words when it does not come up; then nothing is left running.
    """
    engine = launch.engine
    if engine.kind == SERVICE:
        next_step = f"run the commands of --dry-run, then `labkit smoke --base-url {launch.base_url or 'URL'}`"
        raise LabError(f"{engine.name} leaves a server of its own behind, which labkit cannot watch", next_step)
    argv = _installed(engine, launch.argv)
    claim_port(launch.host, launch.port).close()
    if engine.hub_cache:
        _create_hub_cache()
    log, started = _log_of(launch.port, log), utc_now()
    process = _popen(argv, launch.child_environment(), log, cwd=launch.folder, start_new_session=True)
    with _ended_on_error(process, launch.port, _end_group):
        health = _wait_until_healthy(process, lambda: _engine_health(launch), log, timeout)
        if launch.then:
            _run_then(launch, log)
        _announce(launch, process, started)
    return _handle(launch.base_url, launch.port, launch.model, health, log, process)


def serve_engine(
    launch: Launch, timeout: float = ENGINE_SECONDS, proof: Path | None = None, hourly_usd: float = 0.0
) -> None:
    """Run an engine in the foreground until Ctrl+C, SIGTERM or `labkit stop`; signals are passed on to it.

    After a signal it leaves the proof that the engine's process is gone; `proof` is a second place for it.
    Raises LabError with the engine's last words when it ends by itself.
    """
    check_proof_options(proof, hourly_usd)
    signals = _passed_on(signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None))
    with signals, contextlib.suppress(KeyboardInterrupt), start_engine(launch, timeout=timeout) as handle:
        print(f"serving {handle.model} with {launch.engine.name} at {handle.base_url}  (Ctrl+C stops it)")
        print(f"log: {handle.log.name} in {handle.log.parent.name}", flush=True)
        try:
            code = handle.process.wait()
        except KeyboardInterrupt as received:
            leave_proof({**handle.stop(hourly_usd), "received": str(received)}, proof)
            code = 0
        _end_group(handle.process)
        state_file(handle.port).unlink(missing_ok=True)
        if code not in STOPPED:
            raise _reason(handle.log, f"{launch.engine.name} ended by itself with code {code}")
    print("stopped", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _passed_on(*numbers: signal.Signals | None) -> Iterator[None]:
    """Meanwhile each of these signals is a KeyboardInterrupt with its name, on which the body ends the engine; nohup
    stays nohup."""

    def heard(number: int, frame: object) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    numbers = [number for number in numbers if number and signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, heard) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _installed(engine: Engine, argv: tuple[str, ...]) -> list[str]:
    """`argv` with the program's own path: a module of this Python, or a program beside it or on the PATH."""
    first, *rest = argv
    if first == "python":
        found = sys.executable if importlib.util.find_spec(rest[1].partition(".")[0]) else None
    else:
        found = shutil.which(
            first, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        )
    if not found:
        raise LabError(f"{engine.name} is not installed here", f"install it: {engine.install} ({engine.needs})")
    return [found, *rest]


def _create_hub_cache() -> None:
    """transformers serve answers 500 on /v1/models while this folder is missing."""
    from huggingface_hub.constants import HF_HUB_CACHE

    Path(HF_HUB_CACHE).mkdir(parents=True, exist_ok=True)


def _run_then(launch: Launch, log: Path) -> None:
    argv = _installed(launch.engine, launch.then)
    with open(log, "ab") as output:
        done = subprocess.run(
            argv, env=launch.child_environment(), stdout=output, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode:
        raise _reason(log, f"`{launch.command(launch.then)}` ended with code {done.returncode}")


def _announce(launch: Launch, process: subprocess.Popen, started: str) -> None:
    """The state file of an engine; `process.serve` writes that of our own server."""
    record_server(
        process.pid,
        host=launch.host,
        port=launch.port,
        base_url=launch.base_url,
        model=launch.model,
        revision="unknown",
        device="unknown",
        backend=launch.engine.name,
        started=started,
        limits=launch.limits,
    )


def _log_of(port: int, log: Path | None) -> Path:
    return Path(log) if log else STATE / f"server-{port}.log"


def _popen(argv: list[str], environment: dict[str, str], log: Path, **how) -> subprocess.Popen:
    with _opened(log) as output:
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment, **how
        )


def _opened(log: Path) -> BinaryIO:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return open(log, "wb")
    except OSError as error:
        next_step = "free some space, or give a log in a folder that you may write to"
        raise LabError(f"the server's log {log.name} cannot be opened: {error.strerror}", next_step) from None


def _handle(base_url: str, port: int, model: str, health: dict, log: Path, process: subprocess.Popen) -> ServerHandle:
    handle = ServerHandle(base_url, port, model, health, log, process)
    atexit.register(handle._end)
    return handle


@contextlib.contextmanager
def _ended_on_error(process: subprocess.Popen, port: int, and_then: Callable = lambda process: None) -> Iterator[None]:
    try:
        yield
    except BaseException:
        _end(process, port)
        and_then(process)
        raise


def _end_group(process: subprocess.Popen) -> None:
    """End what an engine that is gone has left in its session. Windows has no such groups."""
    if os.name != "nt":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _options(settings: ServerSettings) -> list[str]:
    names = ("model", "host", "port", "device", "backend", "dtype", "revision")
    values = {name: getattr(settings, name) for name in names}
    values.update(asdict(settings.limits))
    adapters = [f"--adapter={name}={folder}" for name, folder in settings.adapters]
    return [*(f"--{name.replace('_', '-')}={value}" for name, value in values.items()), *adapters]


def _wait_until_healthy(process: subprocess.Popen, ask: Callable[[], dict | None], log: Path, timeout: float) -> dict:
    """What `ask` says as soon as it says something: None means not yet."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise _reason(log, f"the server ended at once with code {process.returncode}")
        if health := ask():
            return health
        time.sleep(0.1)
    raise _reason(log, f"the server was not healthy within {timeout:g} s")


def _own_health(base_url: str) -> dict | None:
    try:
        health = read_health(base_url, timeout=2)
    except LabError:
        return None
    return health if health.get("status") == "ok" else None


def _engine_health(launch: Launch) -> dict | None:
    """Any answer but an error is health: engines say it with an empty page, a status or a list of models."""
    try:
        said = read_json_page(launch.base_url + launch.engine.health, timeout=2)
    except (OSError, HTTPException):
        return None
    return {**said, "status": "ok"} if isinstance(said, dict) else {"status": "ok"}


def _reason(log: Path, otherwise: str) -> LabError:
    """The error that the child printed last, as `error: what. Next: step`; else `otherwise` with its last lines."""
    # A device such as /dev/full keeps nothing and has no end.
    text = without_paths(log.read_text(encoding="utf-8", errors="replace")) if log.is_file() else ""
    _, found, last = text.rpartition("error: ")
    what, _, step = " ".join(last.split()).partition(". Next: ")
    if found and step:
        return LabError(what, step)
    tail = " | ".join(line.strip() for line in text.splitlines() if line.strip()).strip()[-400:]
    return LabError(f"{otherwise}; its last words: {tail or 'none'}", "read the whole log", where=log.name)


def _end(process: subprocess.Popen, port: int, grace: float = 10) -> None:
    """End a child, what it started itself, and the files it leaves. A child that has ended already is left as it is."""
    if process.poll() is not None:
        return
    children = children_of(psutil.Process(process.pid))
    process.terminate()
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    end_children(children)
    state_file(port).unlink(missing_ok=True)
    proof_file(port).unlink(missing_ok=True)
