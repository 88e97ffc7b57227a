"""The kill drill of 13.2: a training run is killed without warning and taken up again, and its losses are compared."""

import contextlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from labkit.errors import LabError
from labkit.evidence import read_csv
from labkit.layout import ROOT
from labkit.training.mini_gpt2 import SNAPSHOT
from labkit.training.run_files import RUN_FOLDER

RUN = ("--size", "tiny", "--steps", "150", "--device", "cpu")
KILL_AFTER = 60  # steps, seen in the run's own lines
PATIENCE = 300  # seconds in which a run of the size tiny has long ended, even on a busy machine


def kill_drill(folder: Path) -> list[dict[str, str]]:
    """One row for each row of the log: step, held-out loss of the killed and resumed run, and of one left alone.

    Three processes of `labkit train`: one that is killed on its way (SIGKILL, nothing can be tidied up), the same
    command with --resume, and one that runs through. Raises LabError when a process fails or never ends.
    """
    killed, alone = folder / "killed", folder / "alone"
    at = _start_and_kill(killed)
    _finish(killed, "--resume")
    _finish(alone)
    logs = [read_csv(out / RUN_FOLDER / "training_log.csv") for out in (killed, alone)]
    return [
        {
            "step": mine["step"],
            "killed and resumed": mine["val_loss"],
            "never interrupted": theirs["val_loss"],
            "same": "yes" if mine["val_loss"] == theirs["val_loss"] else "NO",
            "computed": "before the kill" if int(mine["step"]) <= at else "after the kill",
        }
        for mine, theirs in zip(*logs, strict=True)
    ]


def _start(out: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "labkit.cli", "train", "--out", str(out), *RUN, *more]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _start_and_kill(out: Path) -> int:
    """The step of the snapshot that was left. A snapshot after each step, so that one is there when the kill comes."""
    import torch

    with _start(out, "--snapshot-seconds", "0") as process, _killed_after(PATIENCE, process):
        for line in process.stdout:
            if (step := re.match(r"step (\d+) ", line)) and int(step[1]) >= KILL_AFTER:
                break
        process.kill()
        said = process.stderr.read()
    if not (out / SNAPSHOT).exists():
        raise LabError(f"the run ended before it could be killed: {said.strip()[-300:]}", "run the cell again")
    return torch.load(out / SNAPSHOT, weights_only=True)["state"]["step"]


def _finish(out: Path, *more: str) -> None:
    with _start(out, *more) as process, _killed_after(PATIENCE, process):
        _, said = process.communicate()
    if process.returncode:
        raise LabError(f"the training run failed: {said.strip()[-300:]}", "run the same command in a terminal")


@contextlib.contextmanager
def _killed_after(seconds: float, process: subprocess.Popen) -> Iterator[None]:
    """Ends a process that takes too long, so that a notebook never hangs on it."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
