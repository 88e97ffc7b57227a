"""Snapshots: what a killed run left, so that the next one continues with the losses the killed one would have had."""

import io
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from labkit.errors import LabError
from labkit.evidence import write_atomically
from labkit.training.loop import Trainer

SNAPSHOT_SECONDS = 20.0
MEASURED = ("steps", "batch_size")  # numbers of a run that may have been measured, and then belong to the snapshot


class OtherRun(LabError):
    """The snapshot that was found cannot be continued by this run."""


class Snapshots:
    """One file that holds the run's last good step, and what the run is made of.

    Pass `after_step` to `Trainer.run`. A snapshot is written every `seconds`, only while loss and weights are sound.
    Raises LabError for what is no time.
    """

    def __init__(self, path: Path, seconds: float):
        if not seconds >= 0:  # what is no number either
            raise LabError(f"--snapshot-seconds cannot be {seconds}", "give the seconds between two snapshots")
        self.path, self.seconds = path, seconds
        self._made_of: dict[str, str] = {}
        self._last = time.monotonic()

    def describe(self, made_of: Mapping[str, str]) -> None:
        """`made_of` names all that must be the same when the run is taken up again."""
        self._made_of = dict(made_of)

    def numbers(self) -> dict[str, int]:
        """The steps and batch size of the interrupted run, in case they were measured; nothing without a snapshot."""
        made_of = self._read()["made_of"] if self.path.exists() else {}
        return {name: int(made_of[name]) for name in MEASURED if name in made_of}

    def after_step(self, trainer: Trainer) -> None:
        if self._due(trainer):
            self.save(trainer)

    def _due(self, trainer: Trainer) -> bool:
        """By the clock; with several processes, whose clocks differ and who must all save, at each row of the log."""
        if trainer.world.size > 1:
            return not trainer.pending
        return time.monotonic() - self._last >= self.seconds

    def save(self, trainer: Trainer) -> None:
        """Raises LabError when the run has gone wrong or the disk is full; the snapshot before is then still whole."""
        trainer.check()
        state = trainer.state()
        if trainer.world.first:
            buffer = io.BytesIO()
            torch.save({"made_of": self._made_of, "state": state}, buffer)
            write_atomically(self.path, buffer.getvalue())
        self._last = time.monotonic()

    def load(self, trainer: Trainer) -> bool:
        """Put `trainer` where the snapshot was taken; False when there is none.

        Raises LabError for a file that is no snapshot, and for one of another run, naming what differs.
        """
        if not self.path.exists():
            return False
        held = self._read()
        before, now = held["made_of"], self._made_of
        names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        if names:
            differs = "; ".join(f"{name} was {before.get(name)} and is {now.get(name)}" for name in names)
            raise OtherRun(
                f"this is not the run that was interrupted: {differs}",
                "give the same command as before, or start anew without --resume",
            )
        trainer.load(held["state"])
        return True

    def _read(self) -> dict:
        try:
            held = torch.load(self.path, map_location="cpu", weights_only=True)
            held["made_of"], held["state"]["step"]
        except Exception as error:  # torch.load raises many kinds; all mean the same to a learner
            what = f"{self.path.name} is not a snapshot ({type(error).__name__})"
            raise OtherRun(what, "delete it and start without --resume") from None
        return held

    def discard(self) -> None:
        """A finished run needs no snapshot, and a new one must not be taken for the old one."""
        self.path.unlink(missing_ok=True)
