"""The supervisor: it runs in a session of its own, starts the command, ends it at the limit, and proves the end.

It is a process apart from the terminal's, so that a terminal that closes takes the view away and not the guard.
"""

import contextlib
import json
import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from labkit.errors import LabError
from labkit.evidence import Pack, utc_now
from labkit.guard.limits import KILL_SECONDS, SpendingLimits
from labkit.guard.meter import WARN_SHARE, Meter, Reading, clock_text
from labkit.guard.processes import POLL_SECONDS, Command, adopt_orphans
from labkit.serving.ports import port_open
from labkit.serving.proof import shutdown_proof
from labkit.serving.shutdown import gpu_memory_mib, memory_freed

LESSON = "13.4"
UNDER_GUARD = "LABKIT_GUARD"  # set in the command's environment, to the supervisor's process id
LOOK_SECONDS = 1.0  # between two looks at the command's ports
GPU_SECONDS = 15.0  # between two questions to nvidia-smi
PORT_SECONDS = 5.0  # what the ports of a process that is gone get to disappear in
LIMIT_CODE = 124  # the exit code at the limit, as timeout(1) has it
ASKED_CODE = 130  # of a run that somebody stopped, as a shell has it after Ctrl+C


@dataclass(frozen=True)
class Task:
    """What is to be guarded, and where the proof goes: the file `proof` of the pack in `folder`, on `route`.

    `grace` is what the command gets between SIGTERM and SIGKILL, in seconds; `hook` a shell command that is run after
    the end, whatever ended it; `ports` are some that must be closed then, beside those that are seen to be opened.
    """

    argv: tuple[str, ...]
    limits: SpendingLimits
    folder: Path
    route: str
    proof: str = "shutdown_proof.json"
    grace: float = KILL_SECONDS
    hook: str = ""
    hook_seconds: float = 120.0
    ports: tuple[int, ...] = ()
    every: float = 60.0

    def __post_init__(self):
        if not self.argv:
            raise LabError(
                "there is no command to guard", "write it after --, for example: labkit guard ... -- make run"
            )
        if not (0 <= self.grace < math.inf and 0 < self.hook_seconds < math.inf and 0 < self.every < math.inf):
            raise LabError("--grace, --hook-seconds or --every is no time to wait", "give seconds above 0")
        if wrong := [port for port in self.ports if not 1 <= port <= 65535]:
            raise LabError(f"{wrong[0]} is not a port", "give --port a number from 1 to 65535")

    @property
    def signal_before(self) -> float:
        """Seconds before the limit at which SIGTERM is sent: SIGKILL comes at most KILL_SECONDS after the limit."""
        return max(0.0, self.grace - KILL_SECONDS)


@dataclass(frozen=True)
class Ending:
    """Why and how it ended: `because` is "the command ended", "budget", "stop time" or "asked to stop"."""

    because: str
    at: Reading
    signal: str
    exit_code: int | None
    gone: bool


def watch(task: Task, output: BinaryIO) -> int:
    """Run the command until it ends or must, write the proof into the pack, run the hook; the exit code.

    0 and the like are the command's own code, LIMIT_CODE means the limit, ASKED_CODE that somebody stopped it, and 1
    that the command succeeded but the hook failed, something is still there, or the proof could not be written. Raises
    LabError when it cannot start.
    """
    adopt_orphans()
    with _heard() as asked:
        os.environ[UNDER_GUARD] = str(os.getpid())
        watcher = _Watcher(task, output, asked)
        proof = watcher.prove(watcher.until_the_end())
        return _exit_code(proof) or int(not watcher.proved)


@contextlib.contextmanager
def _heard() -> Iterator[threading.Event]:
    """SIGTERM and SIGINT set the event. SIGHUP, a terminal that closes, does nothing."""
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    signal.signal(signal.SIGHUP, lambda *_: None)
    yield asked


class _Watcher:
    def __init__(self, task: Task, output: BinaryIO, asked: threading.Event):
        self._task, self._output, self._asked = task, output, asked
        self._pack = Pack(task.folder, task.route)
        self._meter, self._started = Meter(task.limits), utc_now()
        self._gpu = _GpuMemory()
        self._command = Command(task.argv, output)
        self._ports = {("127.0.0.1", port) for port in task.ports}
        self._warned: float | None = None
        self._clock_change = 0.0
        self._allowed = 0.0  # seconds at the last look at which there was time left
        self.proved = False  # whether the proof is in the pack

    def until_the_end(self) -> Ending:
        self._say(f"watching process {self._command.pid}; {self._meter.says(self._meter.read())}")
        looks = _Every(LOOK_SECONDS, self._look), _Every(self._task.every, self._show)
        while True:
            self._tell(reading := self._meter.read())
            if because := self._why_stop(reading):
                break
            self._allowed = reading.seconds
            for look in looks:
                look(reading)
            time.sleep(POLL_SECONDS)
        self._look(reading)
        self._gpu.stop()
        self._say(f"{because}: stopping" if because != "the command ended" else because)
        used = self._command.end(self._task.grace)
        at = self._meter.read()
        return Ending(because, at, used, self._command.exit_code(), not self._command.alive())

    def _why_stop(self, reading: Reading) -> str:
        if self._command.exit_code() is not None:
            return "the command ended"
        if self._asked.is_set():
            return "asked to stop"
        return reading.limit if reading.left <= self._task.signal_before else ""

    def _tell(self, reading: Reading) -> None:
        """The warning, once; and a clock that was set, each time."""
        if self._warned is None and reading.share >= WARN_SHARE:
            self._warned = round(reading.seconds, 1)
            self._say(f"WARNING: {WARN_SHARE:.0%} is used: {self._meter.says(reading)}")
        if abs(reading.clock_change - self._clock_change) > 1:
            self._clock_change = reading.clock_change
            what = f"this machine's clock was set and is now {reading.clock_change:+.0f} s from where it was going"
            self._say(f"{what}; the budget does not go by it; {self._meter.says(reading)}")

    def _look(self, _: Reading) -> None:
        self._ports |= self._command.listening()

    def _show(self, reading: Reading) -> None:
        self._say(self._meter.says(reading))

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._output.write(f"guard: {text}\n".encode())
            self._output.flush()

    def prove(self, ending: Ending) -> dict:
        """Write the proof, run the hook, and write the proof again with what the hook did: it may end this machine.

        A proof that cannot be written, on a full disk for instance, keeps no hook from running: the bill goes on.
        """
        proof = self._proof(ending) | {"hook": "started, and not back yet" if self._task.hook else "none"}
        self._write(proof)
        if self._task.hook:
            self._say("running the stop hook")
            proof |= {"hook": _run_hook(self._task, self._output)}
            self._write(proof)
        self._say(_summary(proof))
        return proof

    def _write(self, proof: dict) -> None:
        try:
            self._pack.write_json(self._task.proof, proof, LESSON)
            self.proved = True
        except (LabError, OSError) as error:
            self.proved = False
            self._say(f"THE PROOF COULD NOT BE WRITTEN INTO THE PACK, so it stands here: {json.dumps(proof)}; {error}")

    def _proof(self, ending: Ending) -> dict:
        closed = _closed(self._ports)
        ports = sorted({port for _, port in self._ports})
        limit = max(ending.at.seconds + ending.at.left, self._allowed)  # a clock set forward brings it to that moment
        return shutdown_proof(
            pid=self._command.pid,
            port=ports[0] if ports else "none seen",
            model="none: a guarded command",
            process_gone=ending.gone,
            port_closed=closed,
            gpu_memory=memory_freed(self._gpu.last, gpu_memory_mib()),
            started=self._started,
            seconds=round(ending.at.seconds, 1),
            signal=ending.signal,
            hourly_usd=self._task.limits.hourly_usd,
            guard={
                "command": Path(self._task.argv[0]).name,  # the other words may hold a key
                "ended_because": ending.because,
                "exit_code": ending.exit_code,
                "budget_usd": self._task.limits.budget_usd,
                "stop_at": _moment(self._task.limits),
                "limit_seconds": round(limit, 1),
                "seconds_after_limit": round(max(0.0, ending.at.seconds - limit), 1),
                "warned_after_seconds": self._warned if self._warned is not None else "not reached",
                "clock_change_seconds": round(ending.at.clock_change, 1),
            },
            ports=ports or "none seen",
        )


def _moment(limits: SpendingLimits) -> str:
    return limits.stop_at.isoformat(timespec="seconds") if limits.stop_at else "none"


class _Every:
    """Calls `then` at most once in `seconds`; the first time after that long."""

    def __init__(self, seconds: float, then: Callable[[Reading], None]):
        self._seconds, self._then, self._next = seconds, then, seconds

    def __call__(self, reading: Reading) -> None:
        if reading.seconds >= self._next:
            self._next = reading.seconds + self._seconds
            self._then(reading)


class _GpuMemory:
    """The memory in use on the GPUs when last seen, in MiB. nvidia-smi may hang, so it is asked in a thread."""

    def __init__(self):
        self.last: int | None = None
        self._stopped = threading.Event()
        threading.Thread(target=self._ask, name="gpu-memory", daemon=True).start()

    def _ask(self) -> None:
        while not self._stopped.is_set():
            seen = gpu_memory_mib()
            if seen is None and self.last is None:
                return
            self.last = seen if seen is not None and not self._stopped.is_set() else self.last
            self._stopped.wait(GPU_SECONDS)

    def stop(self) -> None:
        self._stopped.set()


def _closed(ports: set[tuple[str, int]]) -> bool:
    """Whether nothing answers on the ports any more, or stops to within PORT_SECONDS."""
    give_up = time.monotonic() + PORT_SECONDS
    while any(port_open(host, port) for host, port in ports):
        if time.monotonic() > give_up:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _run_hook(task: Task, output: BinaryIO) -> dict:
    """Exit code and seconds; the command itself stays out of the proof, because it may hold a key."""
    began = time.monotonic()
    how = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT, "start_new_session": True}
    hook = subprocess.Popen(task.hook, shell=True, **how)
    try:
        code: int | str = hook.wait(task.hook_seconds)
    except subprocess.TimeoutExpired:
        os.killpg(hook.pid, signal.SIGKILL)  # with what its shell had started
        hook.wait()
        code = f"stopped after {task.hook_seconds:g} s"
    return {"exit": code, "seconds": round(time.monotonic() - began, 1)}


def _exit_code(proof: dict) -> int:
    because, code = proof["guard"]["ended_because"], proof["guard"]["exit_code"]
    clean = proof["process_gone"] and proof["port_closed"] and (proof["hook"] == "none" or proof["hook"]["exit"] == 0)
    if because == "asked to stop":
        return ASKED_CODE
    if because != "the command ended":
        return LIMIT_CODE
    return code or int(not clean)


def _summary(proof: dict) -> str:
    gone = "every process gone" if proof["process_gone"] else "A PROCESS IS STILL THERE"
    closed = "its ports closed" if proof["port_closed"] else "A PORT IS STILL OPEN"
    said = (
        f"{gone}, {closed}, GPU memory: {proof['gpu_memory']}; {clock_text(proof['seconds'])}, ${proof['cost_usd']:.2f}"
    )
    if proof["hook"] != "none" and proof["hook"]["exit"] != 0:
        said += f"; THE STOP HOOK FAILED ({proof['hook']['exit']}): the machine may still cost money"
    return said
