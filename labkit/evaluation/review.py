"""A person's judgement of the answers beside the automatic verdict, and where the two agree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from labkit.errors import LabError
from labkit.evaluation.cases import COLUMNS, REVIEW_VALUES, Case, load_cases, review_of
from labkit.evidence import Pack

if TYPE_CHECKING:
    from labkit.evaluation.runner import Result  # which loads torch

CASES = "eval_cases.csv"
Judgement = tuple[str, str]  # "true", "false" or "" for not judged, and notes: the columns pass and notes


@dataclass(frozen=True)
class Agreement:
    """The ids of the cases on which a person and the checks agree, disagree, and that no person has judged yet."""

    agree: tuple[str, ...]
    disagree: tuple[str, ...]
    not_judged: tuple[str, ...]

    def __str__(self) -> str:
        total = len(self.agree) + len(self.disagree) + len(self.not_judged)
        where = f" ({', '.join(self.disagree)})" if self.disagree else ""
        return (
            f"Of {total} cases you agree with the automatic verdict on {len(self.agree)}, "
            f"disagree on {len(self.disagree)}{where}, and have not judged {len(self.not_judged)}."
        )


def one_per_case(results: Sequence["Result"]) -> list["Result"]:
    """What a person is shown: of each case the first repeat that failed, or its first; the failed cases come first.

    A case passes when all of its repeats do, so the verdict of that repeat is the case's.
    """
    shown: dict[str, Result] = {}
    for result in results:
        held = shown.setdefault(result.case.case_id, result)
        if held.verdict.passed and not result.verdict.passed:
            shown[result.case.case_id] = result
    return sorted(shown.values(), key=lambda result: result.verdict.passed)


def agreement(results: Sequence["Result"], judgements: Mapping[str, Judgement]) -> Agreement:
    """`judgements` by case id, as `read_review` gives them; a case that is not in it is not judged."""
    found: dict[str, list[str]] = {"agree": [], "disagree": [], "": []}
    for result in one_per_case(results):
        judged = judgements.get(result.case.case_id, ("", ""))[0]
        same = judged == str(result.verdict.passed).lower()
        found["" if not judged else "agree" if same else "disagree"].append(result.case.case_id)
    return Agreement(tuple(found["agree"]), tuple(found["disagree"]), tuple(found[""]))


def _asked(pack: Pack) -> list[Case]:
    """The cases that the pack's evaluation asked. Raises LabError where there was none."""
    if not pack.path(CASES).is_file():
        raise LabError(f"{CASES} is missing", "run the step that evaluates the cases", where=pack.folder.name)
    return load_cases(pack.path(CASES))


def read_review(pack: Pack) -> dict[str, Judgement]:
    """The judgements in the pack's eval_cases.csv by case id. Raises LabError when there is none or it is broken."""
    return review_of(_asked(pack))


def review(
    pack: Pack, results: Sequence["Result"], judgements: Mapping[str, Judgement], lesson: str = "13.4"
) -> Agreement:
    """Write `judgements` by case id into the columns pass and notes of the pack's eval_cases.csv; the rest stays.

    It does without a hand on the keyboard what `labkit.widgets.review_table` does with one. Raises LabError, before
    anything is written, for a case that the pack does not have and for a pass that is not true, false or empty.
    """
    cases = _asked(pack)
    if unknown := sorted(set(judgements) - {case.case_id for case in cases}):
        raise LabError(f"{CASES} has no case {', '.join(unknown)}", "judge the cases that were asked", pack.folder.name)
    for case_id, (passed, _) in judgements.items():
        if passed not in REVIEW_VALUES:
            raise LabError(f"{passed!r} is not a judgement of {case_id}", "give true or false, or leave it empty")
    rows = []
    for case in cases:
        passed, notes = judgements.get(case.case_id, (case.learner_pass, case.learner_notes))
        rows.append(replace(case, learner_pass=passed, learner_notes=notes).as_row())
    pack.write_csv(CASES, rows, COLUMNS, lesson)
    return agreement(results, read_review(pack))
