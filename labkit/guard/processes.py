"""A command with everything it starts: seen and ended as one, whatever sessions and daemons it makes."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import BinaryIO

import psutil

from labkit.errors import LabError
from labkit.serving.ports import tcp_connections

POLL_SECONDS = 0.1
_SET_CHILD_SUBREAPER = 36  # prctl(2)


def adopt_orphans() -> None:
    """Linux: a process whose parent has ended becomes a child of this one, so that no daemon gets out of sight."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Command:
    """A running command in a session of its own. Its processes are all that descend from this process."""

    def __init__(self, argv: Sequence[str], output: BinaryIO):
        try:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            what = f"the command {argv[0]} cannot be started: {error.strerror}"
            raise LabError(what, "check the words after --") from None
        self.pid = self._process.pid

    def exit_code(self) -> int | None:
        """The code of the command itself, None while it runs; 128 and the signal's number when one ended it."""
        code = self._process.poll()
        return code if code is None or code >= 0 else 128 - code

    def alive(self) -> list[psutil.Process]:
        """Every process of it that still runs. Those of ours that have ended are collected on the way."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
                elif process.pid != self.pid and process.ppid() == os.getpid():
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(process.pid, os.WNOHANG)
        return found

    def listening(self) -> set[tuple[str, int]]:
        """Host and port of every TCP socket that it listens on, as far as this user may see them."""
        found = set()
        for process in self.alive():
            with contextlib.suppress(psutil.Error):
                sockets = tcp_connections(process)
                found |= {(s.laddr.ip, s.laddr.port) for s in sockets if s.status == psutil.CONN_LISTEN}
        return found

    def end(self, seconds: float) -> str:
        """End it within `seconds`: SIGTERM to its process group, then to what it left behind, then SIGKILL to all.

        The group comes first so that a command can end its own workers in order. Returns the strongest signal used.
        """
        deadline, used = time.monotonic() + seconds, "none: it ended by itself"
        if self.exit_code() is None:
            used = "SIGTERM"
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGTERM)
            _wait(lambda: self.exit_code() is not None, deadline)
        if left := self.alive():
            used = "SIGTERM"
            _signal(left, signal.SIGTERM)
            _wait(lambda: not self.alive(), deadline)
        if self.alive():
            used = "SIGKILL"
            self._kill()
        self.exit_code()
        return used

    def _kill(self) -> None:
        """SIGKILL until nothing is left: what forks while it is being killed takes another round."""
        give_up = time.monotonic() + 2
        while (left := self.alive()) and time.monotonic() < give_up:
            _signal(left, signal.SIGKILL)
            self._process.poll()
            time.sleep(POLL_SECONDS / 5)


def _signal(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def _wait(condition, deadline: float) -> None:
    while not condition() and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
