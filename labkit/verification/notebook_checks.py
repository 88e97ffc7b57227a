"""The executed copies of the notebooks, where the pack has them: they showed what the files say. None is run here."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from labkit.evidence import MANIFEST
from labkit.verification import release_checks as release
from labkit.verification import service_checks as service
from labkit.verification import training_checks as training
from labkit.verification.reading import JSON_LIMIT, PackReader
from labkit.verification.timing_checks import made_again
from labkit.verification.verdicts import Contradiction, NotYet

FOLDER = "notebooks/"
TRAINED, RELEASED = f"{FOLDER}13_2_run_train_serve.ipynb", f"{FOLDER}13_4_release_runbook.ipynb"
MOST = 12  # notebooks that are read; the workbook has eight
NAME = re.compile(rf"{FOLDER}13_(\d)_\w{{1,60}}\.ipynb")
_TITLE = re.compile(r"#\s*13\.(\d)\b")
_ROUTE = re.compile(r"^route = [\"'](\w{1,40})[\"']", re.M)
_DRILLED = re.compile(r"^(\w{1,40}): recovered in (\d{1,9}\.\d) s", re.M)
_MODEL = re.compile(r"^model = [\"']([^\"'\n]{1,200})[\"']", re.M)
_PID = re.compile(r"[\"']pid[\"']: (\d{1,12})\b")


def check_notebooks(pack: PackReader) -> str:
    """Each copy is of its lesson and of the pack's route, was run to its end, and showed what the files hold."""
    if pack.manifest is None:
        raise NotYet(f"{MANIFEST} is missing or unreadable")
    names = [name for name in pack.entries if NAME.fullmatch(name)][:MOST]
    for name in names:
        cells = _cells(pack, name)
        _check_copy(pack, name, cells)
        if name == TRAINED:
            _check_losses(pack, cells)
            _check_model(pack, cells)
        if name == RELEASED:
            _check_proof(pack, cells)
            _check_drills(pack, cells)
    return f"{len(names)} executed notebooks, which showed what the files say" if names else "none in this pack"


def _cells(pack: PackReader, name: str) -> list[dict]:
    """The cells of a notebook. Raises NotYet for what is none. Its bytes do not count against those of other files."""
    try:
        cells = json.loads(pack.file(name, JSON_LIMIT).read_bytes())["cells"]
        kinds = {cell["cell_type"] for cell in cells}
    except (ValueError, LookupError, TypeError, RecursionError):
        raise NotYet(f"{name} is no notebook") from None
    if "code" not in kinds:
        raise NotYet(f"{name} has no cell of code")
    return cells


def _check_copy(pack: PackReader, name: str, cells: list[dict]) -> None:
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    title = next(filter(None, (_TITLE.match(_text(cell.get("source"))) for cell in cells)), None)
    if title and title[1] != NAME.fullmatch(name)[1]:
        raise Contradiction(f"{name} holds the lesson 13.{title[1]}")
    for cell in code:
        failed = next((out for out in _outputs(cell) if out.get("output_type") == "error"), None)
        if failed and "raises-exception" not in (cell.get("metadata") or {}).get("tags", []):
            raise NotYet(f"{name} has an error in it: {str(failed.get('ename'))[:40]}")
    if not any(_outputs(cell) for cell in code):
        raise NotYet(f"{name} was not run: no cell has an output")
    ran_on = [found for cell in code for found in _ROUTE.findall(_text(cell.get("source")))]
    if ran_on and pack.manifest and ran_on[-1] != pack.manifest["route"]:
        raise Contradiction(f"{name} ran on the route {ran_on[-1]}, {MANIFEST} says {pack.manifest['route']}")


def _text(value: object) -> str:
    return "".join(value) if isinstance(value, list) else str(value or "")


def _outputs(cell: dict) -> list[dict]:
    return cell.get("outputs") or []


def _printed(cells: list[dict]) -> Iterator[str]:
    """What the cells printed, one text for each cell."""
    for cell in cells:
        yield "".join(_text(out.get("text")) for out in _outputs(cell) if out.get("output_type") == "stream")


def _check_losses(pack: PackReader, cells: list[dict]) -> None:
    """Every loss that the notebook of 13.2 printed is the one of the training log, step for step."""
    if not pack.exists(training.RUN_LOG):
        return
    rows = {int(float(row["step"])): row for row in training.log_rows(pack)}
    shown = {int(step): (a, b) for text in _printed(cells) for step, a, b in training.TRACE_LOSS.findall(text)}
    for step, losses in shown.items():
        logged = rows.get(step, {})
        held = (logged.get("train_loss"), logged.get("val_loss"))
        if tuple(map(float, losses)) != tuple(float(value or "nan") for value in held):
            made_again(pack, training.RUN_LOG, TRAINED)
            what = f"{TRAINED} showed the losses {', '.join(losses)} at step {step}"
            raise Contradiction(f"{what}, {training.RUN_LOG} says {', '.join(map(str, held))}")


def _check_model(pack: PackReader, cells: list[dict]) -> None:
    """The model with which the notebook of 13.2 ran is the one of the first run that it wrote."""
    ran = [
        found for cell in cells if cell["cell_type"] == "code" for found in _MODEL.findall(_text(cell.get("source")))
    ]
    if ran and pack.exists(service.FIRST_RUN):
        said = pack.fields(service.FIRST_RUN, ("Model",))["Model"]
        if Path(ran[-1]).name != Path(said).name:
            raise NotYet(f"{TRAINED} ran with {ran[-1]}, {service.FIRST_RUN} is of {said}")


def _check_drills(pack: PackReader, cells: list[dict]) -> None:
    """The seconds of each drill that the notebook of 13.4 printed are those of the record."""
    shown = dict(found for text in _printed(cells) for found in _DRILLED.findall(text))
    if not (shown and pack.exists(release.DRILL)):
        return
    for drill in pack.json(release.DRILL)["drills"]:
        name, took = str(drill["name"]), float(drill["seconds"])
        if name in shown and shown[name] != f"{took:.1f}":
            made_again(pack, release.DRILL, RELEASED)
            raise Contradiction(f"{RELEASED} showed {shown[name]} s for {name}, {release.DRILL} says {took:g}")


def _check_proof(pack: PackReader, cells: list[dict]) -> None:
    """The server whose end the notebook of 13.4 printed is the one of the proof."""
    shown = [pid for text in _printed(cells) for pid in _PID.findall(text)]
    if shown and pack.exists(release.SHUTDOWN):
        proved = str(pack.json(release.SHUTDOWN).get("pid"))
        if proved not in shown:
            made_again(pack, release.SHUTDOWN, RELEASED)
            raise Contradiction(f"{RELEASED} stopped the process {shown[-1]}, {release.SHUTDOWN} is of {proved}")
