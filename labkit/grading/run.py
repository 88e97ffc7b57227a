"""The class in parallel: one process for each core, a time limit for each submission, and none that can end the run.

Pebble's pool starts another worker when one dies or is stopped, and says of which task it died.
"""

import gc
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import TimeoutError as TimedOut
from concurrent.futures import as_completed
from dataclasses import replace
from pathlib import Path

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from labkit.errors import LabError
from labkit.grading.copies import Print, fingerprints, shared
from labkit.grading.discovery import Submission
from labkit.grading.grade import Grade, Graded, grade_submission, unreadable
from labkit.grading.rubric import Rubric
from labkit.layout import REFERENCE
from labkit.verification.reading import PackReader

SECONDS = 60.0  # for one submission: a real pack takes a fraction of one
_ALONE = "read it alone with `labkit verify`"


def grade_folder(
    submissions: Sequence[Submission],
    rubric: Rubric,
    jobs: int | None = None,
    on_result: Callable[[object], None] = lambda done: None,
    seconds: float = SECONDS,
) -> tuple[Grade, ...]:
    """A row for each pack of `submissions`, in their order; `on_result` is called as each submission is done.

    Nothing in a submission raises: what cannot be read, takes longer than `seconds` or ends its process is a row.
    Raises LabError for less than one job.
    """
    jobs = cores() if jobs is None else jobs
    if jobs < 1:
        raise LabError("grading needs at least one job", "give --jobs 1 or more")
    with tempfile.TemporaryDirectory(prefix="labkit-grade-", ignore_cleanup_errors=True) as scratch:
        graded = list(_graded(submissions, rubric, min(jobs, len(submissions)), on_result, seconds, Path(scratch)))
    marks = shared([telling for _, telling in graded], _reference(submissions))
    return tuple(replace(grade, shared=found) for (grade, _), found in zip(graded, marks, strict=True))


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _graded(
    submissions: Sequence[Submission], rubric: Rubric, jobs: int, on_result: Callable, seconds: float, scratch: Path
) -> Iterator[Graded]:
    spawn = multiprocessing.get_context("spawn")  # on every system alike, and no worker inherits a lock of this process
    with ProcessPool(max_workers=jobs, initializer=_start_worker, context=spawn) as pool:
        try:
            tasks = [pool.submit(grade_submission, seconds, one, rubric, scratch) for one in submissions]
            for done in as_completed(tasks):
                on_result(done)
        except BaseException:  # Ctrl+C too: end the workers now, not when the class is done
            pool.stop()
            raise
        for submission, task in zip(submissions, tasks, strict=True):
            yield from _result(submission, task, seconds)


def _start_worker() -> None:
    """One thread for each worker's arithmetic: the workers together already use every core.

    An error that a reader remembers holds its frames, and they the reader, so each pack leaves garbage in circles: too
    little for Python to look beside the objects of torch, which are therefore taken out of the collection here.
    """
    import torch

    torch.set_num_threads(1)
    gc.freeze()
    gc.collect()


def _result(submission: Submission, task: ProcessFuture, seconds: float) -> list[Graded]:
    try:
        return task.result()
    except TimedOut:
        problem = f"it was not read in {seconds:g} s"
    except ProcessExpired as end:
        problem = f"the process that read it ended (exit code {end.exitcode}), most often because memory ran out"
    except Exception as error:
        problem = f"it could not be read ({type(error).__name__})"
    return [unreadable(submission.name, submission.name, problem, _ALONE)]


def _reference(submissions: Sequence[Submission]) -> list[Print]:
    """The workbook's own reference packs, whose outputs nobody else can have; not those that are being graded."""
    folders = [path for path in sorted(REFERENCE.glob("*")) if path.is_dir()]
    graded = [submission.path.resolve() for submission in submissions]
    strange = [path for path in folders if not any(path.resolve().is_relative_to(place) for place in graded)]
    names = {path: f"the workbook's reference pack {path.name}" for path in strange}
    return [Print(name, name, fingerprints(PackReader(path))) for path, name in names.items()]
