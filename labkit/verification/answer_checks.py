"""The verdicts of an evaluation, made again from the answers beside them: a pass is what its check gives, not a word.

The checks are those of labkit.evaluation. Nothing of the model runs here, so an answer can still be invented; a verdict
cannot.
"""

import json
import time
from functools import lru_cache

from labkit.errors import LabError
from labkit.evaluation.checks import Answer, Check, judge, parse_checks
from labkit.evidence import spreadsheet_safe
from labkit.verification import service_checks as service
from labkit.verification.reading import PackReader, number
from labkit.verification.timing_checks import made_again
from labkit.verification.verdicts import Contradiction, NotYet

LINES = "eval_results.jsonl"  # the rows of eval_results.csv once more
COLUMNS = ("case_id", "check", "output", "latency_ms", "pass")
SECONDS = 1.0  # of processor time for all answers of a pack; a thousand take a tenth
LOOK = 4  # answers between two looks at the clock
PATTERN_SECONDS = 0.1  # for one search; an honest pattern takes microseconds
LONGEST = {"output": 50_000, "check": 1_000, "expected": 20_000}  # characters
ROUNDED = 0.05  # milliseconds by which a recorded latency may differ from the one that was judged
REDACTED = "[redacted: "  # stands where a secret was, and may have changed what a check finds


def check_verdicts(pack: PackReader) -> str:
    """Each verdict of eval_results.csv is what its check gives for its answer, and eval_results.jsonl agrees."""
    rows, cases = service.result_rows(pack), service.case_rows(pack)
    judged = require_verdicts(pack, service.RESULTS, rows, cases)
    _same_lines(pack, rows)
    return f"{judged} verdicts made again from the answers, all the same"


def require_verdicts(
    pack: PackReader, name: str, rows: list[dict[str, str]], cases: list[dict[str, str]], edited: str = service.CASES
) -> int:
    """Judge the answers of `rows` in the file `name` again, and return how many. A row whose case and check are not
    among `cases` is left out.

    Raises Contradiction for a verdict that is another, NotYet where `edited`, the file of the cases, was changed since,
    and for what takes too long.
    """
    expected = {(case["case_id"], case["check"]): case.get("expected", "") for case in cases}
    known = [row for row in rows if (row["case_id"], row["check"]) in expected]
    left = pack.once(lambda _: [SECONDS], "seconds for answers")  # one list for all files of the pack
    for at in range(0, len(known), LOOK):
        started = time.process_time()
        _require(pack, name, known[at : at + LOOK], expected, edited)
        left[0] -= time.process_time() - started
        if left[0] < 0:
            raise NotYet(f"{name}: the checks of this pack take more than {SECONDS:g} s to repeat")
    return len(known)


def _require(
    pack: PackReader, name: str, rows: list[dict[str, str]], expected: dict[tuple[str, str], str], edited: str
) -> None:
    for row in rows:
        where = f"{name} {row['case_id'][:40]}"
        found = _verdicts(row, expected[row["case_id"], row["check"]], where)
        if (row["pass"] == "true") not in found:
            _contradict(pack, name, row, where, edited)


def _verdicts(row: dict[str, str], expected: str, where: str) -> set[bool]:
    """The verdicts that the answer can have had: as it stands, and as it was before an export for spreadsheets."""
    for key, text in (("output", row["output"]), ("check", row["check"]), ("expected", expected)):
        if len(text) > LONGEST[key]:
            raise NotYet(f"{where}: {key} has more than {LONGEST[key]} characters")
    latency = number(row["latency_ms"], f"latency_ms in {where}")
    timed = "latency_ms" in row["check"]
    times = (latency - ROUNDED, latency + ROUNDED) if timed else (0.0,)
    texts = {row["output"], _before_export(row["output"])}
    try:
        return {_passes(text, ms, row["check"], _before_export(expected)) for text in texts for ms in times}
    except LabError as error:
        raise NotYet(f"{where}: {error.what}") from None
    except ValueError:
        raise NotYet(f"{where}: the expected value is not JSON") from None


@lru_cache(maxsize=512)
def _passes(output: str, latency_ms: float, check: str, expected: str) -> bool:
    """Kept, because most answers of one model's number formats are the same, and many in the packs of a class."""
    return judge(Answer(output, latency_ms, PATTERN_SECONDS), _parsed(check, expected)).passed


def _before_export(cell: str) -> str:
    """The cell without the apostrophe that `labkit export pack` puts before what a spreadsheet would run."""
    return cell[1:] if cell.startswith("'") and spreadsheet_safe(cell[1:]) == cell else cell


@lru_cache(maxsize=1024)
def _parsed(check: str, expected: str) -> tuple[Check, ...]:
    return parse_checks(check, expected)


def _contradict(pack: PackReader, name: str, row: dict[str, str], where: str, edited: str) -> None:
    said, shown = ("pass", "fails") if row["pass"] == "true" else ("fail", "passes")
    what = f"{where} says {said}, and its answer {shown} the check {row['check'][:60]}"
    if REDACTED in row["output"]:
        raise NotYet(f"{what}; a secret was taken out of it: run `labkit eval` again")
    if "regex" in row["check"]:
        raise NotYet(f"{what} within {PATTERN_SECONDS:g} s")
    if pack.check_recorded(edited):
        raise NotYet(f"{what}; {edited} was edited since")
    made_again(pack, edited, name)
    raise Contradiction(what)


def _same_lines(pack: PackReader, rows: list[dict[str, str]]) -> None:
    """Case and verdict of each line of eval_results.jsonl are those of the row in the same place."""
    if not pack.exists(LINES):
        return
    with pack.file(LINES).open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    said = [(line["case_id"], line["pass"]) for line in lines]
    if said != (held := [(row["case_id"], row["pass"] == "true") for row in rows]):
        odd = next((line[0] for line, row in zip(said, held, strict=False) if line != row), "their number")
        raise Contradiction(f"{LINES} and {service.RESULTS} differ, first in {str(odd)[:40]}")
    for line, row in zip(lines, rows, strict=True):
        texts = {" ".join(text.split()) for text in (row["output"], _before_export(row["output"]))}
        if "output" in line and " ".join(str(line["output"]).split()) not in texts:
            raise Contradiction(f"{LINES} and {service.RESULTS} hold other answers to {row['case_id'][:40]}")
