"""What a run tells while it lasts: a live bar on a terminal, a few plain lines anywhere else."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from labkit.workbook.lessons import Lesson


@dataclass(frozen=True)
class Progress:
    """Something happened during a run. `kind` is "lesson", "cell", "output" or "done".

    `cell` counts from 1 over all `cells` of the executed copy; `text` is the last line that a cell printed.
    """

    kind: str
    lesson: Lesson
    cell: int = 0
    cells: int = 0
    text: str = ""


Listener = Callable[[Progress], None]


class RunDisplay:
    """Shows Progress events; use it as a context manager and pass it as `on_event`.

    On a terminal it is a rich bar for each lesson. Elsewhere (CI, a file) it prints one line at the start and end of a
    lesson and between them at most one in `every` seconds, so that a log of an hour stays readable.
    """

    def __init__(self, terminal: bool | None = None, every: float = 10.0, clock: Callable[[], float] = time.monotonic):
        self._terminal = sys.stdout.isatty() if terminal is None else terminal
        self._every, self._clock = every, clock
        self._started = self._last = 0.0
        self._bar, self._task = None, None

    def __enter__(self) -> "RunDisplay":
        if self._terminal:
            self._bar = _bar()
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, event: Progress) -> None:
        if event.kind == "lesson":
            self._started = self._clock()
        if self._bar is None:
            self._print(event)
        else:
            self._update(event)

    def _print(self, event: Progress) -> None:
        now = self._clock()
        if event.kind in ("cell", "output") and now - self._last < self._every:
            return
        self._last = now
        seconds = now - self._started
        line = {
            "lesson": f"{event.lesson.number} {event.lesson.title}: started",
            "done": f"{event.lesson.number} {event.lesson.title}: done in {seconds:.0f} s",
        }.get(event.kind, f"{event.lesson.number} cell {event.cell}/{event.cells}, {seconds:.0f} s")
        print(f"{line}: {event.text[:100]}" if event.text else line, flush=True)

    def _update(self, event: Progress) -> None:
        if event.kind == "lesson":
            self._task = self._bar.add_task(f"{event.lesson.number} {event.lesson.title}", total=None, last="")
        elif event.kind == "cell":
            self._bar.update(self._task, completed=event.cell - 1, total=event.cells)
        elif event.kind == "output":
            self._bar.update(self._task, last=_short(event.text))
        else:
            total = self._bar.tasks[self._task].total or 1
            self._bar.update(self._task, completed=total, total=total, last="done")


def _bar():
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[last]}", markup=False),
    )


def _short(text: str, width: int = 60) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
