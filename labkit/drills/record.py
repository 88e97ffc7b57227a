"""What a drill leaves in failure_drill.json: a failure and its recovery, or the reason why it is not possible here."""

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from labkit.errors import LabError
from labkit.evidence import Pack, read_json

LESSON, FILE = "13.4", "failure_drill.json"
DONE, LEFT = "drills", "not_possible_here"  # the two lists in it


@dataclass(frozen=True)
class Answer:
    """What one chat request got. `latency_ms` is to the last byte; `error` is the refusal's own text.

    Status 0 means that no HTTP answer came; then `error` is what the client saw instead.
    """

    status: int
    latency_ms: float
    error: str = "none"
    retry_after: str = "none"


@dataclass(frozen=True, kw_only=True)
class Drill:
    """One failure that was really provoked.

    `provoked` is the command or request, `observed` what was read from the run, `detected` how an operator notices,
    `answered` a chat request to the service after its recovery. `seconds` are those of the failure and the recovery,
    without what other drills did in between.
    """

    name: str = ""
    provoked: str
    observed: dict
    detected: str
    recovered: str
    recovered_ok: bool
    answered: Answer
    seconds: float = 0.0
    time: str = ""


@dataclass(frozen=True)
class NotPossible:
    """A drill that this machine cannot do, and why; it proves nothing, and claims nothing."""

    name: str
    reason: str
    time: str


def outcome(record: Drill | NotPossible) -> str:
    """A record in one line."""
    if isinstance(record, NotPossible):
        return f"{record.name}: not possible here: {record.reason}"
    verdict = "recovered" if record.recovered_ok else "NOT recovered"
    after = f"then a chat got {record.answered.status} in {record.answered.latency_ms:.0f} ms"
    return f"{record.name}: {verdict} in {record.seconds:.1f} s, {after}\n  {record.detected}"


def require_recovery(records: Sequence[Drill | NotPossible]) -> None:
    """Raise LabError naming the drills that the service did not recover from."""
    if failed := [record.name for record in records if isinstance(record, Drill) and not record.recovered_ok]:
        raise LabError(f"the service did not recover from {', '.join(failed)}", f"read `observed` in {FILE}")


class NotPossibleHere(Exception):
    """Raised by a drill on a machine that cannot provoke its failure. The message is the reason."""


def write_drill(pack: Pack, records: Sequence[Drill | NotPossible]) -> Path:
    """Put `records` into failure_drill.json; a record that is there already stays unless one of its name is new."""
    new = {record.name for record in records}
    kept = {key: [old for old in held if old.get("name") not in new] for key, held in _held(pack).items()}
    done = [asdict(record) for record in records if isinstance(record, Drill)]
    left = [asdict(record) for record in records if isinstance(record, NotPossible)]
    content = {DONE: kept[DONE] + done, LEFT: kept[LEFT] + left}
    return pack.write_json(FILE, content, LESSON)


def drill_rows(pack: Pack) -> list[dict[str, str]]:
    """failure_drill.json as rows to read: what was done, how it showed, the way back, and the request after it."""
    held = _held(pack)
    left = [{"name": one.get("name"), "provoked": f"not possible here: {one.get('reason')}"} for one in held[LEFT]]
    return [_row(record) for record in held[DONE] + left]


def _row(record: dict) -> dict[str, str]:
    texts = {key: str(record.get(key, "")) for key in ("name", "provoked", "detected", "recovered", "seconds")}
    answered = record.get("answered")
    then = "{status} in {latency_ms:.0f} ms".format(**answered) if isinstance(answered, dict) else ""
    return {**texts, "afterwards": then}


def _held(pack: Pack) -> dict[str, list[dict]]:
    """The records in the pack; a file that is absent or damaged holds none."""
    content: dict = {}
    with contextlib.suppress(LabError):
        content = read_json(pack.path(FILE))
    lists = {key: content.get(key) for key in (DONE, LEFT)}
    return {
        key: [record for record in held if isinstance(record, dict)] if isinstance(held, list) else []
        for key, held in lists.items()
    }
