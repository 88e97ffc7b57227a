"""Stopping a server, and proving that it is gone: process, port, GPU memory, seconds and cost."""

import contextlib
import subprocess
import time

import psutil

from labkit.errors import LabError
from labkit.evidence import read_json
from labkit.serving.ports import port_open
from labkit.serving.proof import check_proof_options, cost, shutdown_proof
from labkit.serving.running import (
    RunningServer,
    children_of,
    end_children,
    process_of,
    proof_file,
    running_server,
    state_file,
)

EXIT_SECONDS = 60  # what Python may take to exit on a busy machine after the server has finished cleanly
TRAFFIC = ("requests_served", "answers_drained", "answers_cut")  # what only the server itself knows
ENDED_BEFORE = "not measured: the server had ended before"
PORT_SECONDS = 5  # what a closed process's port gets to disappear in


def stop_server(port: int, hourly_usd: float = 0.0, grace: float = 10) -> dict:
    """End the labkit server on `port` and return the content of shutdown_proof.json.

    SIGTERM first, so that answers under way can finish; SIGKILL for a server that has not removed its state file, its
    sign of a clean end, after `grace` seconds, and for what it started and left behind. `hourly_usd` is the price of
    the machine per hour; the cost is that of the time between the server's start and its end. Of a server that has
    ended by a signal already, the proof that it left is completed.
    Raises LabError when no labkit server is known on that port, or it belongs to somebody else.
    """
    check_proof_options(None, hourly_usd)
    server = running_server(port)
    process = server.process() if server else None
    if process is None:
        if server is None and (proof := _completed(port, hourly_usd)):
            return proof
        state_file(port).unlink(missing_ok=True)
        raise LabError(_why_none(server, port), "start a server with `labkit serve`, or name its port with --port")
    memory = gpu_memory_mib()
    try:
        children = children_of(process)
        signal_name = _end(server, process, grace)
        children_gone = end_children(children)
    except psutil.AccessDenied:
        raise LabError(f"the server on port {port} belongs to another user", "ask that user to stop it") from None
    closed = _wait(lambda: not port_open(server.host, port), PORT_SECONDS)
    left = _left_by(server)
    for file in (state_file(port), proof_file(port)):
        file.unlink(missing_ok=True)
    return shutdown_proof(
        pid=server.pid,
        port=port,
        model=server.model,
        process_gone=server.process() is None and children_gone,
        port_closed=closed,
        gpu_memory=memory_freed(memory, gpu_memory_mib()),
        started=server.started,
        signal=signal_name,
        hourly_usd=hourly_usd or left.get("hourly_usd", 0.0),
        **{key: left[key] for key in TRAFFIC if key in left},
    )


def _completed(port: int, hourly_usd: float) -> dict | None:
    """The proof that the last server on `port` left, with what only another process can say; None without one.

    It is handed out once, and not when somebody else uses the port by now. Raises LabError when the process stays.
    """
    path = proof_file(port)
    if not path.is_file() or port_open("127.0.0.1", port):
        return None
    left = read_json(path)
    if missing := {"pid", "seconds", "hourly_usd", "process_gone"} - left.keys():
        raise LabError(f"{path.name} does not say {', '.join(sorted(missing))}", "delete it")
    if created := left.pop("create_time", None):
        if not _wait(lambda: process_of(left["pid"], created) is None, EXIT_SECONDS):
            what = f"the server on port {port} has closed it, and its process {left['pid']} is still there"
            raise LabError(what, "wait, or end that process by hand")
        left |= {"process_gone": True, "gpu_memory": ENDED_BEFORE}
    path.unlink()
    return left | cost(left["seconds"], hourly_usd or left["hourly_usd"])


def _left_by(server: RunningServer) -> dict:
    """What the server said of its own end; nothing when it was killed before."""
    with contextlib.suppress(LabError):
        left = read_json(proof_file(server.port))
        return left if left.get("pid") == server.pid else {}
    return {}


def _why_none(server: RunningServer | None, port: int) -> str:
    if server is not None:
        return f"the labkit server on port {port} has already ended without being stopped"
    if port_open("127.0.0.1", port):
        return f"port {port} is in use by a program that labkit did not start, which it leaves alone"
    return f"no labkit server is known on port {port}"


def _end(server: RunningServer, process: psutil.Process, grace: float) -> str:
    """The name of the signal that ended the process. On Windows both signals end it at once."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.terminate()
    signed_off = _wait(lambda: _gone(server, process) or not state_file(server.port).exists(), grace)
    if signed_off and _wait(lambda: _gone(server, process), EXIT_SECONDS):
        return "SIGTERM"
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
    _wait(lambda: _gone(server, process), grace)
    return "SIGKILL"


def _gone(server: RunningServer, process: psutil.Process) -> bool:
    """Whether the process has ended; where it is a child of this one, its exit status is collected on the way."""
    with contextlib.suppress(psutil.TimeoutExpired):
        process.wait(timeout=0)
    return server.process() is None


def _wait(condition, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def gpu_memory_mib() -> int | None:
    """The memory in use on all NVIDIA GPUs, in MiB, or None where nvidia-smi cannot tell."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return sum(int(line) for line in done.stdout.split())
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def memory_freed(before: int | None, after: int | None) -> str:
    """What became of the GPUs' memory in use, in MiB; "not visible" where nvidia-smi could not tell."""
    return "not visible" if before is None or after is None else f"{before - after} MiB freed"
