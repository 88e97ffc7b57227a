"""One submission read, verified and marked. Everything here runs in a worker process and trusts nothing it reads."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from labkit.archive import unpack
from labkit.errors import LabError
from labkit.grading.copies import Print, Shared, fingerprints
from labkit.grading.discovery import Submission, archives_below, is_archive, packs_below
from labkit.grading.pace import Pace, pace
from labkit.grading.rubric import Mark, Rubric, actions_by_gain, mark, score
from labkit.grading.standing import standings
from labkit.verification import Verdict, verify
from labkit.verification.reading import PackReader
from labkit.verification.verdicts import printable

UNREADABLE = "unreadable"  # beside the three verdicts: there is no pack that could be judged
_CONCLUSIONS = {0: Verdict.SUPPORTED, 1: Verdict.NOT_YET, 2: Verdict.CONTRADICTED}


@dataclass(frozen=True)
class Grade:
    """One row. `verdict` is the pack's own, or UNREADABLE with the `problem`.

    `verdicts` has every name that verify gives, the route in a claim's name written "its route".
    `score` is percent of what the route can earn. `shared` is filled when the whole class has been read.
    """

    submission: str
    pack: str
    route: str
    verdict: str
    score: float
    marks: tuple[Mark, ...]
    verdicts: Mapping[str, str]
    actions: tuple[str, ...]
    pace: Pace
    problem: str = ""
    shared: tuple[Shared, ...] = ()


Graded = tuple[Grade, Print]


def unreadable(submission: str, pack: str, problem: str, action: str) -> Graded:
    """The row of a submission without a pack that can be judged."""
    grade = Grade(submission, pack, "", UNREADABLE, 0.0, (), {}, (action,), Pace(), printable(problem))
    return grade, Print(submission, pack, {})


def grade_submission(submission: Submission, rubric: Rubric, scratch: Path) -> list[Graded]:
    """The grade of each pack in a submission, one row at least. Archives are unpacked below `scratch` and removed."""
    try:
        if submission.path.is_symlink():
            raise LabError("it is a link", "put the folder or the archive itself in its place")
        if is_archive(submission.path):
            return _of_archive(submission, submission.path, submission.name, rubric, scratch)
        if packs := packs_below(submission.path):
            return _of_packs(submission, packs, submission.path, submission.name, rubric)
        if archives := archives_below(submission.path):
            return [row for path in archives for row in _of_inner(submission, path, rubric, scratch)]
        raise LabError("it holds no pack: there is no manifest.json in it", "hand in the whole folder of the pack")
    except LabError as error:
        return [unreadable(submission.name, submission.name, error.what, error.next_step)]
    except OSError as error:
        what = f"it cannot be read: {error.strerror or type(error).__name__}"
        return [unreadable(submission.name, submission.name, what, "hand it in again")]


def _of_inner(submission: Submission, path: Path, rubric: Rubric, scratch: Path) -> list[Graded]:
    """An archive within a person's folder. One that is refused leaves the person's other archives their rows."""
    name = f"{submission.name}/{printable(path.relative_to(submission.path).as_posix())}"
    try:
        return _of_archive(submission, path, name, rubric, scratch)
    except LabError as error:
        return [unreadable(submission.name, name, error.what, error.next_step)]


def _of_archive(submission: Submission, path: Path, name: str, rubric: Rubric, scratch: Path) -> list[Graded]:
    with tempfile.TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True) as into:
        folder = unpack(path, Path(into))
        packs = packs_below(folder)
        if not packs:
            raise LabError("the archive holds no pack: there is no manifest.json in it", "pack the pack's whole folder")
        return _of_packs(submission, packs, folder, name, rubric)


def _of_packs(submission: Submission, packs: list[Path], top: Path, name: str, rubric: Rubric) -> list[Graded]:
    """A grade for each pack. Where there are several, each is named by its place below `top` too."""
    names = [name if len(packs) == 1 else f"{name}/{printable(pack.relative_to(top).as_posix())}" for pack in packs]
    return [_of_pack(submission, pack, shown, rubric) for pack, shown in zip(packs, names, strict=True)]


def _of_pack(submission: Submission, folder: Path, shown: str, rubric: Rubric) -> Graded:
    found = verify(folder)
    stands = standings(found)
    marks = tuple(mark(criterion, stands) for criterion in rubric.of_route(found.route))
    reader = PackReader(folder)
    grade = Grade(
        submission=submission.name,
        pack=shown,
        route=found.route,
        verdict=_CONCLUSIONS[found.exit_code].value,
        score=score(marks),
        marks=marks,
        verdicts={title: stand.verdict.value for title, stand in stands.items() if stand.judged},
        actions=actions_by_gain(rubric, found.route, stands),
        pace=pace(entry["written"] for entry in reader.entries.values()),
    )
    return grade, Print(submission.name, shown, fingerprints(reader))
