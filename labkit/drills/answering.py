"""Failures of a server that answers already: no key, too many clients, a client that does not read, no log, a crash."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from http.client import HTTPException, HTTPResponse
from pathlib import Path

import psutil

from labkit.drills.record import Answer, Drill, NotPossibleHere
from labkit.drills.site import CHAT, HOST, LIMITS, LONG_ANSWER, Site, not_provoked, told
from labkit.endpoint import read_health
from labkit.errors import LabError
from labkit.layout import ROOT
from labkit.serving.ports import tcp_connections
from labkit.serving.running import RunningServer, running_server, state_file

CLIENTS = 4
ATTEMPTS = 3  # a small model may have finished before its clients overlap, or before it is killed
SMALL_BUFFER = 2048  # bytes that the slow client's system keeps for it; the smallest that Linux grants is near this
LARGE = {"logprobs": True, "top_logprobs": 20}  # so many bytes for a token that the buffers fill
UNREAD = replace(LIMITS, request_seconds=6.0)  # what a client that does not read may take
PATIENCE = 60.0  # seconds until other clients must have been answered
READ_ON = 5.0  # seconds without a byte; a window that was shut so long may open again only after a minute (TCP)


def key_missing_in_request(site: Site) -> Drill:
    """A request without the key comes to a server that has one."""
    site.server()
    without, wrong, answered = site.ask(key=""), site.ask(key="not-the-key"), site.ask()
    return Drill(
        provoked=f"POST {CHAT} without a key, and with a wrong one, to a server with a key",
        observed={
            "statuses": [without.status, wrong.status],
            "message": without.error,
            "latencies_ms": [without.latency_ms, wrong.latency_ms],
        },
        detected=f"the client got {without.status}: {without.error}",
        recovered="sent the same request with the server's key",
        recovered_ok=without.status == wrong.status == 401 and answered.status == 200,
        answered=answered,
    )


def queue_full(site: Site) -> Drill:
    """More requests at once than the server takes."""
    site.server()
    for _ in range(ATTEMPTS):
        with ThreadPoolExecutor(CLIENTS) as clients:
            answers = list(clients.map(lambda _: site.ask(**LONG_ANSWER), range(CLIENTS)))
        if refused := [answer for answer in answers if answer.status != 200]:
            break
    else:
        raise not_provoked("no request was refused")
    waited = _wait_as_told(refused[0])
    answered = site.ask()
    held = all(answer.status == 503 and answer.retry_after.isdigit() for answer in refused)
    return Drill(
        provoked=f"{CLIENTS} requests at once to POST {CHAT}; concurrency {LIMITS.concurrency}, queue {LIMITS.queue}",
        observed={
            "statuses": [answer.status for answer in answers],
            "latencies_ms": [answer.latency_ms for answer in answers],
            "message": refused[0].error,
            "retry_after": refused[0].retry_after,
        },
        detected=f"{len(refused)} of {CLIENTS} clients got {refused[0].status}: {refused[0].error}",
        recovered=f"asked again after {waited:g} s, as Retry-After says, when the answers under way had ended",
        recovered_ok=held and len(refused) < CLIENTS and answered.status == 200,
        answered=answered,
    )


def _wait_as_told(refused: Answer) -> float:
    seconds = float(refused.retry_after) if refused.retry_after.isdigit() else 1.0
    time.sleep(seconds)
    return seconds


def slow_client(site: Site) -> Drill:
    """A client stops reading its stream; others are answered, and when the request's time is over it is cut off."""
    server, seconds = site.server(UNREAD), UNREAD.request_seconds
    for _ in range(ATTEMPTS):
        with closing(site.connect(SMALL_BUFFER)) as connection:
            started, sock = time.perf_counter(), connection.sock
            stream = site.open_stream(connection, **LARGE)
            first, others = stream.readline(), _others(site, started)
            ended = _is_cut_off(server.pid, sock.getsockname(), started + 2 * seconds + PATIENCE)
            silent = round(time.perf_counter() - started, 2)
            sock.settimeout(READ_ON)
            rest, end = _read_on(stream)
        if not end.startswith("data:"):
            break
    else:
        raise not_provoked("each answer had ended already")
    answered = site.ask()
    statuses = [answer.status for answer in others]
    good = [answer for answer in others if answer.status == 200]
    return Drill(
        provoked=f"POST {CHAT} with stream: true, of which the client read {len(first)} bytes and then none; "
        f"request_seconds {seconds:g}",
        observed={
            "statuses_of_others": statuses,
            "latencies_of_others_ms": [answer.latency_ms for answer in others],
            "seconds_unread": silent,
            "connection_ended": ended,
            "bytes_read_later": len(rest),
            "stream_ended": end,
        },
        detected=f"after {silent:g} s unread the server {'gave it up' if ended else 'still held it'}; "
        f"other clients got {statuses}",
        recovered=f"by the server itself; the client found {len(rest)} bytes more, and its stream broken off ({end})",
        recovered_ok=ended and len(good) >= CLIENTS - 1 and answered.status == 200,
        answered=answered,
    )


def _is_cut_off(pid: int, client: tuple[str, int], deadline: float) -> bool:
    """Whether the server's process has given up its connection to `client` before `deadline` (perf_counter)."""
    server = psutil.Process(pid)
    while time.perf_counter() < deadline:
        if all(connection.raddr != client for connection in tcp_connections(server)):
            return True
        time.sleep(0.1)
    return False


def _others(site: Site, started: float) -> list[Answer]:
    """What other clients get while one does not read: until three were answered, or PATIENCE is at its end.

    The model first makes the slow client's answer, for which the server may refuse others for a while.
    """
    answers: list[Answer] = []
    while sum(answer.status == 200 for answer in answers) < CLIENTS - 1:
        if time.perf_counter() - started > PATIENCE:
            break
        answers.append(site.ask())
        if answers[-1].status != 200:
            _wait_as_told(answers[-1])
    return answers


def _read_on(stream: HTTPResponse) -> tuple[bytes, str]:
    """The rest of a stream, and how it ended."""
    rest = b""
    try:
        while part := stream.read1(2**16):
            rest += part
    except (OSError, HTTPException) as error:
        return rest, told(error)
    return rest, "data: [DONE]" if rest.rstrip().endswith(b"data: [DONE]") else "without data: [DONE]"


def _size_after(log: Path, size: int, seconds: float = 3.0) -> int:
    """The size of `log` as soon as it is larger than `size`: a request's line is written after its answer is sent."""
    deadline = time.monotonic() + seconds
    while log.stat().st_size <= size and time.monotonic() < deadline:
        time.sleep(0.02)
    return log.stat().st_size


def log_disk_full(site: Site) -> Drill:
    """The server's log can grow no more, as on a full disk; the service must go on answering."""
    server = site.server()
    before = server.log.stat().st_size
    with _no_larger_files(server.pid, before):
        answers = [site.ask() for _ in range(CLIENTS)]
        during = server.log.stat().st_size
    answered = site.ask()
    after = _size_after(server.log, during)
    statuses = [answer.status for answer in answers]
    return Drill(
        provoked=f"RLIMIT_FSIZE of the server's process set to {before} bytes, the size of its log: each write fails",
        observed={
            "statuses_without_log": statuses,
            "latencies_ms": [answer.latency_ms for answer in answers],
            "log_bytes_before_during_after": [before, during, after],
        },
        detected=f"the log stays at {during} bytes while {len(statuses)} requests are served: {statuses}",
        recovered=f"lifted the limit, as one frees a disk; the same process writes its log again: {after} bytes",
        recovered_ok=set(statuses) == {200} and answered.status == 200 and before == during < after,
        answered=answered,
    )


@contextmanager
def _no_larger_files(pid: int, size: int) -> Iterator[None]:
    """The process `pid` cannot make any file larger than `size` bytes (setrlimit(2): such a write fails, EFBIG)."""
    if sys.platform != "linux":
        raise NotPossibleHere(f"only Linux sets the limits of a running process; this is {sys.platform}")
    import resource

    try:
        soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))
    except OSError as error:
        raise NotPossibleHere(f"this system sets no limit of a running process: {error.strerror}") from None
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))


def backend_crash(site: Site) -> Drill:
    """The server's process is killed while it answers."""
    killed, received, broken = _kill_while_answering(site)
    stale = running_server(site.port)
    found = f"{state_file(site.port).name} names a process that is gone" if _is_stale(stale) else "no stale state file"
    health = _health(site.port)
    code, said = _labkit_stop(site.port)
    site.server()
    answered = site.ask()
    return Drill(
        provoked=f"killed the server's process {killed.pid} (exit code {killed.returncode}) during a stream",
        observed={"bytes_received": received, "client": broken, "health": health, "state_file": found}
        | {"labkit_stop": said, "labkit_stop_exit_code": code},
        detected=f"the client's stream broke off ({broken}), and /health: {health}",
        recovered=f"`labkit stop --port {site.port}` cleared the stale state file; started the server again",
        recovered_ok=_is_stale(stale) and code != 0 and answered.status == 200,
        answered=answered,
    )


def _kill_while_answering(site: Site) -> tuple[subprocess.Popen, int, str]:
    """The killed process, the bytes that the client had, and what it then saw; SIGKILL leaves no time to tidy up.

    Raises LabError when every answer had ended before.
    """
    for _ in range(ATTEMPTS):
        process = site.server().process
        with closing(site.connect()) as connection:
            stream = site.open_stream(connection)
            first = stream.readline()
            process.kill()
            process.wait()
            rest, end = _read_on(stream)
        if not end.startswith("data:"):
            return process, len(first) + len(rest), end
    raise not_provoked("each answer had ended already")


def _is_stale(state: RunningServer | None) -> bool:
    return state is not None and state.process() is None


def _health(port: int) -> str:
    try:
        return str(read_health(f"http://{HOST}:{port}").get("status"))
    except LabError as error:
        return error.what


def _labkit_stop(port: int) -> tuple[int, str]:
    """The exit code and the words of the real `labkit stop`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "labkit.cli", "stop", "--port", str(port), "--out", folder]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, " ".join((done.stdout + done.stderr).split())[:400]
