"""What a terminal sees of a guarded command: its output and the guard's lines, for as long as the terminal is there."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from labkit.errors import LabError
from labkit.evidence import utc_now
from labkit.guard.limits import SpendingLimits
from labkit.guard.watch import UNDER_GUARD, Task, watch
from labkit.layout import ROOT, STATE

LOGS = STATE / "guard"
SUPERVISOR = "import sys; sys.path.insert(0, {root!r}); from labkit.guard.start import supervise; supervise()"
FAILED_TO_START = 2


def under_guard() -> bool:
    """Whether this process was started by a guard."""
    return UNDER_GUARD in os.environ


def guarded(task: Task) -> int:
    """Start the supervisor of `task`, show what is going on until it ends, and return its exit code.

    Ctrl+C and SIGTERM ask it to stop; a terminal that closes ends only this view. Raises LabError on Windows.
    """
    if os.name == "nt":
        raise LabError("labkit guard needs sessions and signals, which Windows does not have", "run it under WSL")
    log = _new_log()
    with open(log, "ab") as output:
        code = SUPERVISOR.format(root=str(ROOT))
        how = {"stdin": subprocess.PIPE, "stdout": output, "stderr": output, "start_new_session": True}
        supervisor = subprocess.Popen([sys.executable, "-c", code], **how)
    supervisor.stdin.write(json.dumps(_as_json(task)).encode())
    supervisor.stdin.close()
    place = f"log: {log.relative_to(ROOT)}; it goes on without this terminal; `kill {supervisor.pid}` stops it"
    print(f"guard: {place}", flush=True)
    with _passed_on(supervisor), open(log, "rb") as shown:
        return _follow(supervisor, shown)


def _new_log() -> Path:
    LOGS.mkdir(parents=True, exist_ok=True)
    return LOGS / f"{utc_now().replace(':', '')[:17]}-{os.getpid()}.log"


@contextlib.contextmanager
def _passed_on(supervisor: subprocess.Popen) -> Iterator[None]:
    """Meanwhile SIGINT and SIGTERM go to the supervisor, which ends the command and proves it."""

    def pass_on(number: int, frame: object) -> None:
        supervisor.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _follow(supervisor: subprocess.Popen, shown: BinaryIO) -> int:
    """Print the log as it grows until the supervisor has ended, and what there is then."""
    while True:
        code = supervisor.poll()
        _print(shown.read())
        if code is not None:
            _print(shown.read())
            return code if code >= 0 else _killed(-code)
        time.sleep(0.1)


def _print(text: bytes) -> None:
    with contextlib.suppress(OSError):  # nobody reads any more
        sys.stdout.buffer.write(text)
        sys.stdout.flush()


def _killed(number: int) -> int:
    what = f"the guard itself was ended by {signal.Signals(number).name}, and wrote no proof"
    raise LabError(what, "look for processes that still run (`ps aux`, `nvidia-smi`), end them, and stop the machine")


def supervise() -> None:
    """The supervisor's process: the task comes as JSON on its standard input, its output is the log."""
    task = _from_json(json.loads(sys.stdin.buffer.read()))
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    try:
        sys.exit(watch(task, output))
    except LabError as error:
        output.write(f"error: {error.what}\nnext: {error.next_step}\n".encode())
        sys.exit(FAILED_TO_START)


def _as_json(task: Task) -> dict:
    limits = asdict(task.limits)
    limits["stop_at"] = task.limits.stop_at.isoformat() if task.limits.stop_at else None
    return asdict(task) | {"limits": limits, "folder": str(task.folder.resolve())}


def _from_json(values: dict) -> Task:
    stop_at = values["limits"]["stop_at"]
    limits = SpendingLimits(**values["limits"] | {"stop_at": datetime.fromisoformat(stop_at) if stop_at else None})
    words = {"argv": tuple(values["argv"]), "ports": tuple(values["ports"]), "folder": Path(values["folder"])}
    return Task(**values | words | {"limits": limits})
