"""A run that was killed goes on: each answer is kept as it comes, under the run that it belongs to."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from labkit.errors import LabError
from labkit.evaluation.checks import Verdict
from labkit.evaluation.targets import Reply
from labkit.evidence import write_atomically

PROGRESS = ".eval_progress.jsonl"

Key = tuple[str, int]  # case_id, repeat


class AnswersSoFar:
    """The file of the answers that a run has so far, in the pack's `folder`: one JSON line for each.

    Opening it with `resume` takes the answers of the same `run_id` into `held`, and drops those of another run and a
    line that was cut off; without it the run begins with none. Raises LabError where the file cannot be written.
    """

    def __init__(self, folder: Path, run_id: str, resume: bool = False):
        self._path, self._run_id = Path(folder) / PROGRESS, run_id
        self.held: dict[Key, tuple[Reply, Verdict]] = dict(self._of_this_run()) if resume else {}
        lines = (self._line(key, *answered) for key, answered in self.held.items())
        write_atomically(self._path, "".join(lines).encode())

    def add(self, key: Key, reply: Reply, verdict: Verdict) -> None:
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(self._line(key, reply, verdict))
        except OSError as error:
            what = f"an answer could not be kept: {error.strerror}"
            raise LabError(what, "free some space, then go on with --resume", self._path.name) from None

    def remove(self) -> None:
        """Once every case has its answer and the results are written."""
        self._path.unlink(missing_ok=True)

    def _line(self, key: Key, reply: Reply, verdict: Verdict) -> str:
        case_id, repeat = key
        line = {"run_id": self._run_id, "case_id": case_id, "repeat": repeat}
        return json.dumps(line | {"reply": asdict(reply), "verdict": asdict(verdict)}) + "\n"

    def _of_this_run(self) -> Iterator[tuple[Key, tuple[Reply, Verdict]]]:
        if not self._path.exists():
            return
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                found = json.loads(line)
                if found["run_id"] == self._run_id:
                    answered = Reply(**found["reply"]), Verdict(**found["verdict"])
                    yield (found["case_id"], found["repeat"]), answered
            except (ValueError, KeyError, TypeError):  # cut off when the run was killed, or by another version
                continue
