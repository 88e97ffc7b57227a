"""papermill over the notebooks, in order, with one route's values."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path

import psutil

from labkit.commit import git_commit
from labkit.errors import LabError
from labkit.evidence import Pack, json_text, read_json, sha256_of, write_atomically
from labkit.layout import NOTEBOOKS, STATE
from labkit.routes import Route, load_route
from labkit.workbook.copies import portable, shareable_copy
from labkit.workbook.lessons import Lesson, run_order
from labkit.workbook.packs import open_pack, required_lessons
from labkit.workbook.progress import Listener, Progress

COPIES = "notebooks"  # the folder in the pack that keeps the executed copies
START_SECONDS = 180  # in which a notebook's Python process must answer; a busy machine takes one minute
UNFINISHED = ".run.json"  # in the pack while a run of all lessons is under way; hidden, so it is no evidence


@dataclass(frozen=True)
class RunResult:
    """Where the pack is, which lessons ran, and which were kept from a run that had been cut off."""

    folder: Path
    lessons: tuple[str, ...]
    kept: tuple[str, ...] = ()


def run_workbook(
    route: str,
    evidence_dir: str | Path = "",
    lesson: str | None = None,
    on_event: Listener | None = None,
    required: bool = False,
) -> RunResult:
    """Execute the notebooks on `route` and keep the executed copies in the pack's notebooks/ folder.

    `lesson` runs a single one, `required` those that leave what the route requires; `evidence_dir` is relative to the
    current folder. Each notebook gets the route file's value for just those parameters that it declares. Raises
    LabError when a cell fails or a kernel dies: the copy of that notebook, as far as it came, and every artifact so far
    stay in the pack.

    A run of all lessons that was cut off, by a kill or a failing cell, goes on at the lesson it had not finished,
    unless the workbook has changed since.
    """
    chosen = load_route(route)
    pack = open_pack(route, evidence_dir)
    done = _finished(pack) if lesson is None else {}
    kept = tuple(done)
    wanted = required_lessons(chosen) if required else run_order(lesson)
    lessons = [entry for entry in wanted if entry.number not in kept]
    for entry in lessons:
        _run_lesson(entry, chosen, pack, on_event or (lambda event: None))
        done[entry.number] = sha256_of(NOTEBOOKS / entry.file)
        if lesson is None:
            write_atomically(pack.path(UNFINISHED), json_text({"commit": git_commit(), "lessons": done}).encode())
    if lesson is None:
        pack.path(UNFINISHED).unlink(missing_ok=True)
    return RunResult(pack.folder, tuple(entry.number for entry in lessons), kept)


def _finished(pack: Pack) -> dict[str, str]:
    """The lessons that a run had finished before it was cut off, with the sha256 of their notebooks as they still are.

    Empty after a run that came to its end, and once the workbook or the first of these notebooks has changed.
    """
    try:
        held = read_json(pack.path(UNFINISHED))
        lessons = held["lessons"].items() if held["commit"] == git_commit() else ()
    except (LabError, KeyError, AttributeError):
        return {}
    now = {entry.number: NOTEBOOKS / entry.file for entry in run_order()}
    same = takewhile(lambda told: told[0] in now and sha256_of(now[told[0]]) == told[1], lessons)
    return dict(same)


def parameters_for(path: Path, route: Route) -> dict[str, object]:
    """The route's values for the parameters that the notebook at `path` declares, as papermill wants them."""
    import papermill

    declared = papermill.inspect_notebook(str(path))
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(route).items()
        if name in declared
    }


def _run_lesson(entry: Lesson, route: Route, pack: Pack, on_event: Listener) -> None:
    source = NOTEBOOKS / entry.file
    if not source.is_file():
        raise LabError(f"the notebook {entry.file} is missing", "restore it with `git checkout notebooks`")
    on_event(Progress("lesson", entry))
    with tempfile.TemporaryDirectory(prefix="labkit-") as scratch:
        draft = Path(scratch) / entry.file
        try:
            _execute(entry, source, draft, parameters_for(source, route), pack, on_event)
        except BaseException:
            _stop_servers(pack.folder)
            raise
        finally:
            if draft.is_file():
                _keep_copy(draft, entry, pack)
    on_event(Progress("done", entry))


def _execute(entry: Lesson, source: Path, draft: Path, parameters: dict, pack: Pack, on_event: Listener) -> None:
    """Run one notebook. The pack's folder travels in LABKIT_EVIDENCE, so that no path is written into the copy."""
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    from labkit.workbook.kernel import ThisInterpreter

    watcher = _Watcher(entry, source, on_event)
    try:
        with _environment(LABKIT_EVIDENCE=str(pack.folder.resolve()), PYDEVD_DISABLE_FILE_VALIDATION="1"):
            papermill.execute_notebook(
                str(source),
                str(draft),
                parameters=parameters,
                kernel_name="python3",
                kernel_manager_class=ThisInterpreter,
                start_timeout=START_SECONDS,
                cwd=str(NOTEBOOKS),
                progress_bar=False,
                stdout_file=watcher,
                on_cell_start=watcher.cell_started,
                store_widget_state=False,
            )
    except PapermillExecutionError as error:
        raise LabError(
            f"{error.ename}: {portable(error.evalue, pack.folder)}",
            f"read the traceback in {COPIES}/{entry.file} of the pack, then run "
            f"`labkit run --route {pack.route} --lesson {entry.number}`; the artifacts so far are kept",
            where=f"{entry.file}, code cell {watcher.code_cell(error.source)}",
        ) from None
    except OSError as error:
        raise LabError(
            f"the executed copy could not be written: {error.strerror or error}",
            f"free some space, then run `labkit run --route {pack.route}`; the artifacts so far are kept",
            where=entry.file,
        ) from None
    except DeadKernelError:
        raise LabError(
            "the notebook's Python process ended, most often because memory ran out",
            f"close other programs, then run `labkit run --route {pack.route} --lesson {entry.number}`",
            where=f"{entry.file}, code cell {watcher.code_cell(watcher.source)}",
        ) from None
    except RuntimeError as error:  # jupyter_client has no class of its own for a kernel that never answers
        raise LabError(
            f"the notebook's Python process did not come up: {error}",
            f"close other programs, then run `labkit run --route {pack.route} --lesson {entry.number}`",
            where=entry.file,
        ) from None


def _stop_servers(folder: Path) -> None:
    """End the servers that a failed lesson of this pack left behind: those whose environment names its folder."""
    from labkit.serving.running import running_server
    from labkit.serving.shutdown import stop_server

    for path in STATE.glob("server-*.json"):
        with suppress(LabError, psutil.Error):
            server = running_server(int(path.stem.removeprefix("server-")))
            process = server.process() if server else None
            if process and process.environ().get("LABKIT_EVIDENCE") == str(folder.resolve()):
                stop_server(server.port)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set environment variables for a kernel that is about to start, and put the old ones back."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _Watcher:
    """Turns nbclient's hooks and the kernel's standard output into Progress events."""

    def __init__(self, entry: Lesson, source: Path, on_event: Listener):
        import nbformat

        cells = nbformat.read(source, as_version=4).cells
        self._code = [cell.source for cell in cells if cell.cell_type == "code"]
        self._total = len(cells) + 1  # papermill adds the injected-parameters cell
        self._entry, self._on_event = entry, on_event
        self._cell, self.source = 0, ""

    def cell_started(self, cell, cell_index: int) -> None:
        self._cell = cell_index + 1
        self.source = cell.source
        self._on_event(Progress("cell", self._entry, self._cell, self._total))

    def write(self, text: str) -> None:
        lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
        if lines:
            self._on_event(Progress("output", self._entry, self._cell, self._total, lines[-1]))

    def flush(self) -> None:
        """papermill calls this after each write; nothing is buffered here."""

    def code_cell(self, source: str) -> str:
        """Which code cell of the committed notebook `source` is, counted from 1."""
        return str(self._code.index(source) + 1) if source in self._code else "with the route's parameters"


def _keep_copy(draft: Path, entry: Lesson, pack: Pack) -> None:
    name = f"{COPIES}/{entry.file}"
    pack.write_text(name, shareable_copy(draft, pack.folder), entry.number)
