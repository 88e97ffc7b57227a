"""A training run that outlives its machine: its snapshots go to where the pack's second copy lies, while it runs.

The pack is copied after each cell, and a training is one cell, so a thread looks for new snapshots meanwhile. They are
no evidence and stand in no manifest. Only a folder takes them: a zip file reaches the learner when the cell has ended.
"""

import contextlib
import threading
from pathlib import Path

from labkit.errors import LabError
from labkit.evidence import write_atomically

SNAPSHOTS = "*.resume.pt"
LOOK_SECONDS = 10.0


class UnfinishedRuns:
    """Keeps the snapshots at the top of `pack` in the folder `copy` as well."""

    def __init__(self, pack: Path, copy: Path):
        self._pack, self._copy = pack, copy
        self._seen: dict[str, int] = {}  # name to modification time, in nanoseconds, of what `copy` holds
        self._one_at_a_time, self._stopped = threading.Lock(), threading.Event()

    def take_up(self) -> list[str]:
        """Take into the pack the snapshots that it lacks; their names. Raises OSError."""
        found = [path for path in sorted(self._copy.glob(SNAPSHOTS)) if not (self._pack / path.name).exists()]
        for path in found:
            write_atomically(self._pack / path.name, path.read_bytes())
            self._seen[path.name] = (self._pack / path.name).stat().st_mtime_ns
        return [path.name for path in found]

    def keep(self) -> None:
        """Copy what is new, and remove what a finished run has removed. Raises OSError or LabError."""
        with self._one_at_a_time:
            here = {path.name: path for path in self._pack.glob(SNAPSHOTS)}
            for name, path in here.items():
                if self._seen.get(name) != (written := path.stat().st_mtime_ns):
                    write_atomically(self._copy / name, path.read_bytes())
                    self._seen[name] = written
            for name in self._seen.keys() - here.keys():
                (self._copy / name).unlink(missing_ok=True)
                del self._seen[name]

    def watch(self) -> None:
        """`keep` every LOOK_SECONDS from now on, in a thread; what fails is tried again the next time."""
        threading.Thread(target=self._look, name="unfinished-runs", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _look(self) -> None:
        while not self._stopped.wait(LOOK_SECONDS):
            self.try_to_keep()

    def try_to_keep(self) -> None:
        with contextlib.suppress(OSError, LabError):
            self.keep()
