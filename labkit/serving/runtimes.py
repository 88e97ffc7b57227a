"""Starting servers: our own as a watched child process, and the table of engines that people use beyond it."""

import atexit
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from labkit.endpoint import read_health
from labkit.errors import LabError
from labkit.layout import ROOT, STATE
from labkit.serving.contract import Limits, ServerSettings
from labkit.serving.process import claim_port, with_key
from labkit.serving.shutdown import stop_server

SERVER_MODULE = "labkit.serving"


@dataclass(frozen=True)
class Runtime:
    """An engine that serves a chat model over HTTP. In `start`, MODEL stands for a hub id, a folder or a GGUF file.

    `tried` says whether this project has started it on its own CPU machine: "run here" or "not run here".
    """

    name: str
    start: str
    port: int
    health: str
    needs: str
    tried: str


RUNTIMES = (
    Runtime("labkit", "labkit serve --model MODEL --port 8000", 8000, "/health", "CPU is enough", "run here"),
    Runtime(
        "transformers serve",
        "transformers serve MODEL --host 127.0.0.1 --port 8001 --continuous-batching",
        8001,
        "/health",
        "pip install transformers[serving]; CPU is enough",
        "run here",
    ),
    Runtime(
        "llama-server",
        "llama-server -m MODEL.gguf --host 127.0.0.1 --port 8080 -c 4096",
        8080,
        "/health",
        "llama.cpp built or downloaded, a GGUF file; CPU is enough",
        "run here",
    ),
    Runtime(
        "llama_cpp.server",
        "python -m llama_cpp.server --model MODEL.gguf --host 127.0.0.1 --port 8000 --interrupt_requests false",
        8000,
        "/v1/models",
        "pip install llama-cpp-python[server], a GGUF file; CPU is enough",
        "run here",
    ),
    Runtime(
        "vLLM",
        "vllm serve MODEL --host 127.0.0.1 --port 8000 --max-model-len 4096",
        8000,
        "/health",
        "an NVIDIA GPU: the published wheels are CUDA builds",
        "not run here",
    ),
    Runtime(
        "SGLang",
        "python -m sglang.launch_server --model-path MODEL --host 127.0.0.1 --port 30000",
        30000,
        "/health",
        "an NVIDIA GPU: the published wheels are CUDA builds",
        "not run here",
    ),
    Runtime(
        "Ollama",
        "ollama serve, then ollama pull MODEL",
        11434,
        "/v1/models",
        "the Ollama program; its Python package is a client only",
        "not run here",
    ),
    Runtime(
        "LM Studio",
        "lms server start --port 1234",
        1234,
        "/v1/models",
        "the LM Studio program; its Python package is a client only",
        "not run here",
    ),
)


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
        atexit.unregister(self._end)
        _end(self.process)

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
) -> ServerHandle:
    """Start `labkit serve` as a child process and return when its /health is ok, within `timeout` seconds.

    The child's output goes to `log` (default .labkit/server-<port>.log). Raises LabError with the child's own reason
    when it does not come up; then nothing is left running.
    """
    settings = with_key(ServerSettings(model, host, port, device, limits or Limits()))
    claim_port(host, port).close()
    log = Path(log) if log else STATE / f"server-{port}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", SERVER_MODULE, *_options(settings)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"},
        )
    try:
        health = _wait_until_healthy(process, settings, log, timeout)
    except BaseException:
        _end(process)
        raise
    handle = ServerHandle(settings.base_url, port, health["model"], health, log, process)
    atexit.register(handle._end)
    return handle


def _options(settings: ServerSettings) -> list[str]:
    values = {"model": settings.model, "host": settings.host, "port": settings.port, "device": settings.device}
    values.update(asdict(settings.limits))
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]


def _wait_until_healthy(process: subprocess.Popen, settings: ServerSettings, log: Path, timeout: float) -> dict:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise _reason(log, f"the server ended at once with code {process.returncode}")
        try:
            health = read_health(settings.base_url, timeout=2)
        except LabError:
            time.sleep(0.1)
            continue
        if health.get("status") == "ok":
            return health
    raise _reason(log, f"the server was not healthy within {timeout:g} s")


def _reason(log: Path, otherwise: str) -> LabError:
    """The error that the child printed last, as `error: what. Next: step`; else `otherwise` with its last lines."""
    text = without_paths(log.read_text(encoding="utf-8", errors="replace"))
    _, found, last = text.rpartition("error: ")
    what, _, step = " ".join(last.split()).partition(". Next: ")
    if found and step:
        return LabError(what, step)
    tail = " | ".join(line.strip() for line in text.splitlines() if line.strip()).strip()[-400:]
    return LabError(f"{otherwise}; its last words: {tail or 'none'}", "read the whole log", where=log.name)


def without_paths(text: str) -> str:
    """`text` with every absolute path cut to its last name: errors go into artifacts, this machine's folders do not."""
    return re.sub(r"(?<![\w:/.])(?:[A-Za-z]:)?(?:[\\/][\w.@+~-]+)*[\\/]([\w.@+~-]+)", r"\1", text)


def _end(process: subprocess.Popen, grace: float = 10) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
