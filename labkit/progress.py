"""Progress of a training run: a bar on a terminal, one plain line for each log row anywhere else."""

import sys

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

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
