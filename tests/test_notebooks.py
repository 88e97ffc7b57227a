"""What every committed notebook must keep to. Each test names the breakage that it prevents."""

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest

from labkit.layout import NOTEBOOKS
from labkit.routes import ROUTE_NAMES, Route, load_routes
from labkit.workbook import LESSONS, PLAN
from labkit.workbook.course import BADGE_CELL, badge_text, load_course, wrong_badges

CHECKED = "# NBVAL_CHECK_OUTPUT"
BOOTSTRAP_MARK = "labkit.begin(route, evidence_dir)"
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")

every_notebook = pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)


def cells(path: Path, kind: str | None = None) -> list:
    found = nbformat.read(path, as_version=4).cells
    return [cell for cell in found if kind in (None, cell.cell_type)]


def test_every_lesson_has_its_notebook_and_every_notebook_its_lesson():
    assert {path.name for path in NOTEBOOKS.glob("*.ipynb")} == {entry.file for entry in LESSONS}


@every_notebook
def test_the_format_is_valid_and_every_cell_has_an_id_of_its_own(path):
    """A cell without an id gets a new one at every save, and each save is then a change in git."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)


@every_notebook
def test_the_first_code_cell_holds_the_parameters_for_local_cpu(path):
    """papermill puts its values after the tagged cell; code before it would run with other values."""
    first, *others = cells(path, "code")
    assert first.metadata.get("tags") == ["parameters"]
    assert not [cell for cell in others if "parameters" in cell.metadata.get("tags", [])]
    statements = ast.parse(first.source).body
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in statements}  # nothing but assignments
    assert values["route"] == "local_cpu"
    assert values["evidence_dir"] == ""


@every_notebook
def test_a_default_that_the_route_file_also_has_is_local_cpus(path):
    """Run by hand and run by papermill, the local route must be the same run."""
    local = next(route for route in load_routes() if route.route == "local_cpu")
    for node in ast.parse(cells(path, "code")[0].source).body:
        name = node.targets[0].id
        if hasattr(local, name):
            value = ast.literal_eval(node.value)
            assert (tuple(value) if isinstance(value, list) else value) == getattr(local, name), name


def test_the_bootstrap_cell_is_the_same_everywhere():
    """Six copies of a cell drift apart; then a mend reaches five of them."""
    second = {path.name: cells(path, "code")[1].source for path in NOTEBOOKS.glob("*.ipynb")}
    assert len(set(second.values())) == 1, {name: hash(source) for name, source in second.items()}
    assert BOOTSTRAP_MARK in next(iter(second.values()))


@every_notebook
def test_the_badge_is_that_of_the_course_and_of_this_notebook(path):
    """A badge that was copied opens another notebook, or one that is gone."""
    cell = next(cell for cell in cells(path, "markdown") if cell.id == BADGE_CELL)
    assert cell.source == badge_text(load_course(), path.name)
    assert wrong_badges() == []


@every_notebook
def test_the_route_is_a_form_field_in_colab(path):
    """Colab shows `# @param [...]` as a list to choose from; its values must be the routes."""
    line = next(line for line in cells(path, "code")[0].source.splitlines() if line.startswith("route = "))
    assert line == 'route = "local_cpu"  # @param ' + json.dumps(list(ROUTE_NAMES))


@every_notebook
def test_outputs_are_empty_but_for_the_checked_ones(path):
    """Committed outputs go stale and bloat git; a checked one is compared by nbval at every run."""
    for cell in cells(path, "code"):
        if cell.source.startswith(CHECKED):
            assert cell.outputs, f"{cell.id} is marked as checked and has no output to compare"
            assert cell.execution_count == 1, f"{cell.id}: nbval refuses an output without an execution count"
        else:
            assert cell.outputs == [], cell.id
            assert cell.execution_count is None, cell.id


@every_notebook
def test_there_is_no_widget_metadata(path):
    """GitHub shows "the 'state' key is missing" in place of a notebook that carries half a widget state."""
    notebook = nbformat.read(path, as_version=4)
    assert "widgets" not in notebook.metadata
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"


@every_notebook
def test_nothing_is_run_by_a_shell_or_left_in_the_background(path):
    """`!server &` hangs or fails under papermill, and `input()` waits for ever."""
    for cell in cells(path, "code"):
        assert not re.search(r"^\s*[!%]", cell.source, re.M), cell.id
        assert not re.search(r"\binput\(|get_ipython\(\)\.system|os\.system\(", cell.source), cell.id


@every_notebook
def test_code_cells_are_short(path):
    """A long cell hides a computation that belongs in labkit, where it has a test. Only the bootstrap cell, which finds
    labkit, cannot call it (tests/test_hosted.py)."""
    for cell in cells(path, "code"):
        if BOOTSTRAP_MARK in cell.source:
            continue
        lines = [line for line in cell.source.splitlines() if line.strip() and not line.strip().startswith("#")]
        assert len(lines) <= 12, f"{cell.id} has {len(lines)} lines"


@every_notebook
def test_a_notebook_calls_labkit_and_does_not_compute(path):
    """A notebook that defines functions or classes cannot be tested; nested loops are a computation."""
    for cell in cells(path, "code"):
        tree = ast.parse(cell.source)
        for node in ast.walk(tree):
            assert not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.While), cell.id
            if isinstance(node, ast.For):
                assert not any(isinstance(child, ast.For) for line in node.body for child in ast.walk(line)), cell.id
        imported = {
            alias.name.split(".")[0]
            for node in ast.walk(tree)
            for alias in getattr(node, "names", [])
            if isinstance(node, ast.Import)
        } | {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not imported & {"torch", "transformers", "subprocess", "requests"}, cell.id


@every_notebook
def test_no_path_or_address_of_a_machine_is_written_in_it(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"/(home|Users|root|work)/\w|[A-Z]:\\\\\w", text)
    assert "trust_remote_code=True" not in text


@every_notebook
def test_links_between_files_resolve(path):
    for cell in cells(path, "markdown"):
        for target in LINK.findall(cell.source):
            if "://" not in target and not target.startswith(("#", "mailto:")):
                assert (path.parent / target.split("#")[0]).exists(), target


@every_notebook
def test_the_opening_states_the_minutes_of_every_route(path):
    """Minutes that are written twice drift apart; the route file is the one that counts."""
    entry = next(entry for entry in LESSONS if entry.file == path.name)
    opening = cells(path, "markdown")[0].source
    assert opening.startswith(f"# {entry.number}")
    for route in load_routes():
        assert states_minutes(opening, route, entry.minutes(route)), f"{route.route}: {entry.minutes(route)}"


def states_minutes(text: str, route: Route, minutes: int) -> bool:
    """Whether the number stands beside the route's name, on either side of it."""
    name = rf"`?{route.route}`?"
    return bool(re.search(rf"\b{minutes}\b[^.\d]{{0,30}}{name}|{name}[^.\d]{{0,30}}\b{minutes}\b", text))


@every_notebook
def test_the_end_checks_the_lesson_and_asks_questions_with_answers(path):
    """`labkit.check` closes every lesson; a question without its reason teaches a letter and not a thought."""
    number = next(entry.number for entry in LESSONS if entry.file == path.name)
    assert cells(path, "code")[-1].source.strip() == f'labkit.check("{number}", pack)'
    closing = "\n".join(cell.source for cell in cells(path)[-3:] if cell.cell_type == "markdown")
    answers = closing.count("<details><summary>Answer</summary>")
    assert answers >= 2
    assert closing.count("</details>") == answers


def test_the_plan_that_13_0_prints_is_the_plan_that_fills():
    text = "\n".join(cell.source for cell in cells(NOTEBOOKS / "13_0_checklist.ipynb", "markdown"))
    for number, box in enumerate(PLAN, start=1):
        title = box.title[0].lower() + box.title[1:]
        assert f"| {number} | {box.minutes} | {box.lesson} | {title} |" in text
