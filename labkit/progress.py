"""Progress of a run: a bar on a terminal; anywhere else a plain line for each log row of training, and no more."""

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from labkit.training.log import LogRow, trace_line


class StepDisplay:
    """Pass it as `on_row` inside a `with` block. `steps` is None where the number of steps is found by measuring."""

    def __init__(self, steps: int | None):
        columns = (TextColumn("training"), BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        self._bar = Progress(*columns) if sys.stdout.isatty() else None
        self._task = self._bar.add_task("", total=steps) if self._bar else None

    def __enter__(self) -> "StepDisplay":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, row: LogRow) -> None:
        if self._bar:
            self._bar.update(self._task, completed=row.step, description=trace_line(row))
        else:
            print(trace_line(row), flush=True)


class AnswerDisplay:
    """Answers that came (or grades), of `total`, on stderr. Pass it as `on_result` inside a `with` block."""

    def __init__(self, total: int, what: str = "answers"):
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True)) if sys.stderr.isatty() else None
        self._task = self._bar.add_task("", total=total) if self._bar else None

    def __enter__(self) -> "AnswerDisplay":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, _result: object) -> None:
        if self._bar:
            self._bar.advance(self._task)
