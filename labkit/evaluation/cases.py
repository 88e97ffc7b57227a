"""Evaluation cases: a CSV file that a person can edit in a spreadsheet, read strictly."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from labkit.adaptation.notes import find_note, load_notes, with_note
from labkit.errors import LabError
from labkit.evaluation.checks import parse_checks
from labkit.evidence import read_csv
from labkit.layout import DATA

RISKS = ("format", "grounding", "safety", "performance", "regression")
COLUMNS = ("case_id", "prompt", "expected_behavior", "risk", "pass", "notes", "context_id", "check", "expected")
EVAL_CASES = DATA / "eval_cases.csv"
REVIEW_VALUES = ("", "true", "false")


@dataclass(frozen=True)
class Case:
    """One fixed question. `learner_pass` and `learner_notes` are the reader's own judgement, empty until given.

    `check` names the automatic checks, joined by ";" (labkit.evaluation.checks), and `expected` is what they compare
    with. `context_id` is the policy note put before the prompt, or empty.
    """

    case_id: str
    prompt: str
    expected_behavior: str
    risk: str
    learner_pass: str
    learner_notes: str
    context_id: str
    check: str
    expected: str

    @property
    def cited(self) -> str:
        """The note that a right answer cites, or empty: what retrieval must find."""
        found = re.search(r"\bcites:([\w-]+)", self.check)
        return found[1] if found else ""

    def full_prompt(self) -> str:
        return with_note(self.prompt, find_note(self.context_id)) if self.context_id else self.prompt

    def as_row(self) -> dict[str, str]:
        row = asdict(self)
        row["pass"], row["notes"] = row.pop("learner_pass"), row.pop("learner_notes")
        return row


def load_cases(path: Path = EVAL_CASES) -> list[Case]:
    """The cases in `path`. Raises LabError that names the row and column of the first thing that is wrong."""
    rows = read_csv(Path(path))
    if not rows:
        raise LabError(f"{Path(path).name} holds no cases", "give at least one case for each risk")
    missing = [column for column in COLUMNS if column not in rows[0]]
    if missing:
        raise LabError(f"{Path(path).name} lacks columns: {', '.join(missing)}", f"use {', '.join(COLUMNS)}")
    cases, notes = [], load_notes()
    for number, row in enumerate(rows, start=2):
        _check_row(row, number, Path(path).name, notes)
        case = {column: row[column] for column in COLUMNS if column not in ("pass", "notes")}
        cases.append(Case(**case, learner_pass=row["pass"].strip().lower(), learner_notes=row["notes"]))
    ids = [case.case_id for case in cases]
    if doubled := {case_id for case_id in ids if ids.count(case_id) > 1}:
        raise LabError(f"{Path(path).name} has a case_id twice: {', '.join(sorted(doubled))}", "give each case its own")
    return cases


def _check_row(row: dict[str, str], number: int, name: str, notes: dict) -> None:
    def wrong(column: str, what: str, next_step: str) -> LabError:
        return LabError(what, next_step, where=f"{name}, row {number}, column {column}")

    for column in ("case_id", "prompt", "expected_behavior", "check"):
        if not row[column].strip():
            raise wrong(column, "a case has an empty field", f"fill in {column}")
    if row["risk"] not in RISKS:
        raise wrong("risk", f"there is no risk called {row['risk']!r}", f"choose one of {', '.join(RISKS)}")
    if row["pass"].strip().lower() not in REVIEW_VALUES:
        raise wrong("pass", f"{row['pass']!r} is not a judgement", "write true or false, or leave it empty")
    if row["context_id"] and row["context_id"] not in notes:
        raise wrong("context_id", f"there is no note {row['context_id']!r}", f"choose one of {', '.join(notes)}")
    try:
        parse_checks(row["check"], row["expected"])
    except LabError as error:
        raise wrong("check", error.what, error.next_step) from None
    except json.JSONDecodeError as error:
        raise wrong("expected", f"the expected JSON is not JSON: {error}", "mend it") from None


def review_of(cases: list[Case]) -> dict[str, tuple[str, str]]:
    """The learner's judgements by case id, for carrying them over when the cases are written again."""
    return {case.case_id: (case.learner_pass, case.learner_notes) for case in cases}
