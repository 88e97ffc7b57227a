"""The lessons, the pack a notebook opens, and papermill over notebooks: real kernels, small notebooks."""

import base64
import io
import json
import os
import sys
import textwrap
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import psutil
import pytest
from jupyter_client.kernelspec import KernelSpec
from PIL import Image

from labkit import layout, routes, workbook
from labkit.environment import EnvironmentReport
from labkit.errors import LabError
from labkit.evidence import Pack, read_manifest
from labkit.routes import ROUTE_NAMES, load_route
from labkit.verification import Finding, Verdict, verify
from labkit.workbook import PLAN, Lesson, copies, packs, runner
from labkit.workbook.copies import small_png
from labkit.workbook.kernel import ThisInterpreter
from labkit.workbook.progress import Progress, RunDisplay


def write_notebook(path: Path, *cells: str) -> None:
    """A notebook whose first code cell is the parameters cell; a text stands at its end."""
    made = [nbformat.v4.new_code_cell(textwrap.dedent(cell).strip()) for cell in cells]
    made[0].metadata["tags"] = ["parameters"]
    notebook = nbformat.v4.new_notebook(cells=[*made, nbformat.v4.new_markdown_cell("The end.")])
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(notebook, path)


@pytest.fixture
def one_lesson(tmp_path, monkeypatch):
    """A workbook of one lesson, 13.1, whose cells the test writes; returns a function that makes and runs it."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    entry = Lesson("13.1", "13_1_small.ipynb", "Small")
    monkeypatch.setattr(runner, "NOTEBOOKS", folder)
    monkeypatch.setattr(runner, "run_order", lambda lesson=None: (entry,))

    def run(*cells: str, **options) -> Path:
        write_notebook(folder / entry.file, *cells)
        return workbook.run_workbook("local_cpu", tmp_path / "pack", **options).folder

    run.pack = tmp_path / "pack"
    return run


def outputs(copy: Path) -> str:
    cells = nbformat.read(copy, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))


# Lessons and the plan


def test_every_lesson_has_its_minutes_on_every_route():
    for route in routes.load_routes():
        assert all(entry.minutes(route) > 0 for entry in workbook.LESSONS)


def test_the_checklist_runs_last_so_that_its_boxes_are_filled():
    assert [entry.number for entry in workbook.run_order()] == [
        "13.1",
        "13.2",
        "13.3",
        "13.4",
        "13.5",
        "13.6",
        "13.7",
        "13.0",
    ]
    assert [entry.number for entry in workbook.run_order("13.2")] == ["13.2"]


@pytest.mark.parametrize("route", ["local_cpu", "free_colab", "rented_gpu"])
def test_what_a_route_does_not_require_can_be_left_out(route):
    needed = [entry.number for entry in workbook.required_lessons(routes.load_route(route))]
    assert needed == ["13.1", "13.2", "13.3", "13.4", "13.5", "13.0"]


def test_pictures_of_an_executed_copy_are_small_and_of_the_same_size():
    from labkit.plots import route_minutes

    before = route_minutes(routes.load_routes())._repr_png_()
    after = base64.b64decode(small_png(base64.b64encode(before).decode("ascii")))
    assert len(after) < 0.6 * len(before)
    assert Image.open(io.BytesIO(after)).size == Image.open(io.BytesIO(before)).size


def test_an_unknown_lesson_names_the_known_ones():
    with pytest.raises(LabError, match=r"no lesson '13.9'.*13\.0, 13\.1"):
        workbook.lesson("13.9")


def test_the_plan_has_nine_boxes_and_covers_every_required_artifact():
    assert [box.minutes for box in PLAN] == [20, 20, 25, 25, 25, 30, 30, 30, 20]
    assert sum(box.minutes for box in PLAN[:5]) == 115
    planned = {name for box in PLAN if box.lesson not in ("13.6", "13.7") for name in box.artifacts}
    assert planned == set(load_route("local_cpu").required_artifacts), "no route requires an adaptation or an export"


def finding(name: str, verdict: Verdict, detail: str = "why", action: str = "do it") -> Finding:
    return Finding(name, "13.1", verdict, detail, action, True)


def test_a_box_is_filled_only_when_all_its_artifacts_are_supported():
    names = PLAN[0].artifacts
    some = [finding(name, Verdict.SUPPORTED) for name in names[:-1]]
    state = workbook.box_states([*some, finding(names[-1], Verdict.CONTRADICTED)])[0]
    assert not state.filled
    assert state.still_open == (names[-1],)
    assert workbook.box_states([*some, finding(names[-1], Verdict.SUPPORTED)])[0].filled


# The pack and the closing check


def test_a_notebook_opens_the_folder_it_is_given_or_the_one_of_its_route(tmp_path, monkeypatch):
    assert workbook.open_pack("local_cpu", tmp_path / "mine").folder == tmp_path / "mine"
    monkeypatch.setenv("LABKIT_EVIDENCE", str(tmp_path / "graded"))
    assert workbook.open_pack("local_cpu").folder == tmp_path / "graded"


def test_an_unknown_route_and_a_pack_of_another_route_are_refused(tmp_path):
    with pytest.raises(LabError, match="no route called 'moon'"):
        workbook.open_pack("moon", tmp_path)
    workbook.open_pack("local_cpu", tmp_path)
    with pytest.raises(LabError, match="made on the route local_cpu"):
        workbook.open_pack("rented_gpu", tmp_path)


def test_check_prints_what_is_done_what_is_missing_and_the_next_action(tmp_path, capsys):
    pack = workbook.open_pack("local_cpu", tmp_path)
    pack.write_text("requirements-freeze.txt", "torch==2.13.0\n", "13.1")
    workbook.check("13.1", pack)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "Lesson 13.1 on the route local_cpu: 1 of 3 artifacts supported"
    assert said[1] == "done:     requirements-freeze.txt"
    assert said[2:4] == ["missing:  environment_report.txt", "missing:  compute_route.md"]
    assert said[-1] == "next:     run `labkit run --lesson 13.1`"


def test_check_puts_a_conflict_before_a_gap(tmp_path, capsys):
    pack = workbook.open_pack("local_cpu", tmp_path)
    pack.write_text("requirements-freeze.txt", "torch==2.13.0\n", "13.1")
    (tmp_path / "requirements-freeze.txt").write_text("torch==9.9.9\n")
    workbook.check("13.1", pack)
    said = capsys.readouterr().out
    assert said.index("conflict: requirements-freeze.txt") < said.index("missing:")
    conflict = next(item for item in verify(tmp_path).artifacts if item.verdict is Verdict.CONTRADICTED)
    assert said.splitlines()[-1] == f"next:     {conflict.next_action}"


def test_check_of_the_checklist_reads_the_whole_pack(tmp_path, capsys):
    workbook.check("13.0", workbook.open_pack("local_cpu", tmp_path))
    assert "0 of 19 artifacts supported" in capsys.readouterr().out
    finished = packs._summary("13.0", "local_cpu", [finding("a", Verdict.SUPPORTED)])
    assert finished[-1].startswith("next:     nothing is missing")


def test_after_a_finished_lesson_the_next_notebook_is_named():
    assert packs._summary("13.1", "local_cpu", [finding("a", Verdict.SUPPORTED)])[-1].endswith(workbook.LESSONS[2].file)


def test_the_printable_checklist_ticks_what_is_supported(tmp_path):
    pack = workbook.open_pack("local_cpu", tmp_path)
    pack.write_text("requirements-freeze.txt", "torch==2.13.0\n", "13.1")
    text = workbook.checklist_markdown(verify(tmp_path))
    assert "- ☑ 13.1 `requirements-freeze.txt`\n" in text
    assert "- ☐ 13.1 `compute_route.md` (not yet): run `labkit run --lesson 13.1`" in text
    rows = workbook.plan_rows(verify(tmp_path).artifacts)
    assert rows[0]["state"] == "not yet"
    assert "compute_route.md" in rows[0]["still open"]


# Lesson 13.1's artifacts


def report(**changes: object) -> EnvironmentReport:
    facts = dict(
        python="3.12.1",
        platform="Linux x86_64",
        cpu="a processor",
        cores=2,
        ram_gib=8.0,
        disk_free_gib=20.0,
        torch="2.13.0",
        device="cpu",
        device_reason="no GPU",
        cuda=False,
        mps=False,
        gpu="none",
        vram_gib="none",
        driver="none",
        colab=False,
        packages={},
        warnings=(),
    )
    return EnvironmentReport(**{**facts, **changes})


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("local_cpu", ("compute_route.md",)),
        ("free_colab", ("compute_route.md", "colab_notes.md")),
        ("rented_gpu", ("compute_route.md", "gpu_plan.md")),
    ],
)
def test_each_route_gets_its_own_filled_files(tmp_path, name, files):
    route = load_route(name)
    pack = Pack(tmp_path, name)
    decision = routes.choose_route(routes.typical_constraints(route))
    assert decision.route == name
    assert set(workbook.write_route_plan(pack, route, decision, report())) == set(files)
    verdicts = {item.name: item.verdict for item in verify(tmp_path, lesson="13.1").artifacts}
    assert all(verdicts[file] is Verdict.SUPPORTED for file in files)


def test_a_missing_gpu_is_recorded_on_a_gpu_route_and_only_there(tmp_path):
    for name, expected in (("local_cpu", False), ("free_colab", True), ("rented_gpu", True)):
        route = load_route(name)
        decision = routes.choose_route(routes.typical_constraints(route))
        text = routes.compute_route_markdown(route, decision, "cpu", "no GPU", "2026-01-01T00:00+00:00")
        assert ("- Missing GPU: " in text) is expected
        with_gpu = routes.compute_route_markdown(route, decision, "cuda", "a GPU", "2026-01-01T00:00+00:00")
        assert "Missing GPU" not in with_gpu


def test_overruling_the_rule_is_written_down():
    decision = routes.choose_route(routes.Constraints(private_data=True))
    text = routes.compute_route_markdown(load_route("free_colab"), decision, "cpu", "no GPU")
    assert "- Reason: chosen by the learner; the rule would take local_cpu because private data" in text


def test_the_stop_time_is_what_the_budget_or_the_lessons_allow_and_is_never_extended():
    route = load_route("rented_gpu")
    start = datetime(2026, 1, 1, tzinfo=UTC)
    assert routes.planned_stop(route, start) == "2026-01-01T03:35+00:00"  # 215 minutes of lessons
    assert routes.planned_stop(replace(route, budget_usd=0.79), start) == "2026-01-01T01:00+00:00"
    plan = routes.gpu_plan_markdown(route, "2026-01-01T03:15+00:00", "L40S", "a price")
    assert routes.planned_stop(route, datetime(2026, 1, 2, tzinfo=UTC), plan) == "2026-01-01T03:15+00:00"


def test_a_rental_without_a_budget_is_refused():
    with pytest.raises(LabError, match="needs a budget"):
        routes.planned_stop(replace(load_route("rented_gpu"), budget_usd=0.0), datetime.now(UTC))


def test_the_price_row_carries_its_date_and_source():
    row = workbook.route_plan.price_row(load_route("rented_gpu").hourly_usd)
    assert "$0.79 an hour, seen 20" in row
    assert "https://" in row
    assert "ask your provider" in workbook.route_plan.price_row(123.45)


# Running notebooks


def test_a_notebook_gets_just_the_parameters_that_it_declares(one_lesson):
    pack = one_lesson(
        "route, train_steps, extra = 'x', 1, 2\ntrain_steps = 1\nroute = 'x'", "print(route, train_steps)"
    )
    assert outputs(pack / "notebooks/13_1_small.ipynb") == "local_cpu 300\n"
    metadata = json.loads((pack / "notebooks/13_1_small.ipynb").read_text())["metadata"]["papermill"]
    assert set(metadata["parameters"]) == {"route", "train_steps"}


@pytest.mark.parametrize("name", ROUTE_NAMES)
def test_papermill_takes_each_route_file_as_it_is(name, tmp_path):
    import papermill

    source = layout.NOTEBOOKS / "13_1_compute_route.ipynb"
    values = papermill.iorw.read_yaml_file(str(layout.ROUTES / f"{name}.yaml"))
    made = papermill.execute_notebook(str(source), str(tmp_path / "out.ipynb"), parameters=values, prepare_only=True)
    assert f'route = "{name}"' in "".join(cell.source for cell in made.cells)


def test_the_kernel_is_this_interpreter_even_where_another_one_has_taken_its_name(one_lesson, tmp_path, monkeypatch):
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    broken = {"argv": ["/bin/false", "{connection_file}"], "display_name": "x", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(broken))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    pack = one_lesson("route = 'x'", "import sys, hashlib\nprint(hashlib.sha256(sys.executable.encode()).hexdigest())")
    import hashlib

    assert hashlib.sha256(sys.executable.encode()).hexdigest() in outputs(pack / "notebooks/13_1_small.ipynb")


def test_the_pack_reaches_the_notebook_and_the_environment_is_put_back(one_lesson, monkeypatch):
    monkeypatch.delenv("LABKIT_EVIDENCE", raising=False)
    write = "from labkit import open_pack\nopen_pack(route, evidence_dir).write_text('a.txt', 'made', '13.1')"
    pack = one_lesson("route = 'x'\nevidence_dir = ''", write)
    assert (pack / "a.txt").read_text() == "made"
    assert "LABKIT_EVIDENCE" not in os.environ


def test_the_executed_copy_is_recorded_and_holds_no_path_of_this_machine(one_lesson):
    show = f"""
        import os, pathlib, warnings
        print(pathlib.Path.home() / "secret", {str(layout.ROOT)!r}, os.environ["LABKIT_EVIDENCE"])
        warnings.warn("careful")
        {{"home": str(pathlib.Path.home() / "x")}}
    """
    pack = one_lesson("route = 'x'", show)
    name = "notebooks/13_1_small.ipynb"
    text = (pack / name).read_text()
    for private in (str(Path.home()), str(layout.ROOT), str(pack), "input_path", "output_path"):
        assert private not in text
    assert "~/secret <workbook> <pack>" in text
    assert read_manifest(pack)["files"][name]["lesson"] == "13.1"
    timed = {cell.cell_type for cell in nbformat.reads(text, as_version=4).cells if "papermill" in cell.metadata}
    assert timed == {"code"}


def test_a_warning_of_an_installed_package_names_no_folder_of_this_machine(tmp_path):
    module = Path(pytest.__file__)
    said = copies.portable(f"{module}:3: UserWarning; {Path(os.__file__)}", tmp_path)
    assert said == "<site-packages>/pytest/__init__.py:3: UserWarning; <python>/os.py"


def test_what_is_no_picture_is_left_alone_and_widgets_become_a_note(tmp_path):
    home = str(Path.home())
    assert copies._clean({"image/png": home, "text/plain": home}, tmp_path) == {"image/png": home, "text/plain": "~"}
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "VBox(children=())"}
    assert copies._clean(widget, tmp_path) == {"text/plain": "(a control: run this notebook in Jupyter to use it)"}


def test_a_failing_cell_is_named_and_everything_so_far_is_kept(one_lesson):
    with pytest.raises(LabError) as caught:
        one_lesson(
            "route = 'x'",
            "import labkit\nlabkit.open_pack(route).write_text('kept.txt', 'kept', '13.1')",
            "print('before')\nraise ValueError(f'no luck in {__import__(\"pathlib\").Path.home()}')",
            "print('never')",
        )
    assert caught.value.where == "13_1_small.ipynb, code cell 3"
    assert caught.value.what == "ValueError: no luck in ~"
    assert "labkit run --route local_cpu --lesson 13.1" in caught.value.next_step
    assert (one_lesson.pack / "kept.txt").read_text() == "kept"
    copy = one_lesson.pack / "notebooks/13_1_small.ipynb"
    assert "before" in outputs(copy)
    assert "never" not in outputs(copy)
    assert str(Path.home()) not in copy.read_text()
    assert "notebooks/13_1_small.ipynb" in read_manifest(one_lesson.pack)["files"]


def test_a_run_that_was_cut_off_goes_on_at_the_lesson_it_had_not_finished(tmp_path, monkeypatch):
    lessons = tuple(Lesson(f"13.{n}", f"{n}.ipynb", "Small") for n in (1, 2, 3))
    for entry in lessons:
        (tmp_path / entry.file).write_text(f"notebook {entry.number}")
    ran, dies_at = [], ["13.2"]

    def run_lesson(entry, *_):
        ran.append(entry.number)
        if entry.number in dies_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(runner, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(runner, "run_order", lambda number=None: lessons if number is None else lessons[:1])
    monkeypatch.setattr(runner, "_run_lesson", run_lesson)
    with pytest.raises(KeyboardInterrupt):
        workbook.run_workbook("local_cpu", tmp_path / "pack")
    dies_at.clear()
    done = workbook.run_workbook("local_cpu", tmp_path / "pack")
    assert (ran, done.lessons, done.kept) == (["13.1", "13.2", "13.2", "13.3"], ("13.2", "13.3"), ("13.1",))
    assert workbook.run_workbook("local_cpu", tmp_path / "pack").kept == (), "a finished run begins anew"

    dies_at.append("13.3")
    with pytest.raises(KeyboardInterrupt):
        workbook.run_workbook("local_cpu", tmp_path / "pack")
    (tmp_path / "2.ipynb").write_text("another notebook")
    dies_at.clear()
    assert workbook.run_workbook("local_cpu", tmp_path / "pack").kept == ("13.1",)
    assert not (tmp_path / "pack" / ".run.json").exists()


def test_a_full_disk_under_the_executed_copy_is_a_clear_error(one_lesson, monkeypatch):
    def full(*_args, **_named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("papermill.execute_notebook", full)
    with pytest.raises(LabError, match="executed copy could not be written: No space left on device"):
        one_lesson("route = 'x'")


def test_a_kernel_that_dies_is_a_clear_error(one_lesson):
    with pytest.raises(LabError, match="process ended") as caught:
        one_lesson("route = 'x'", "import os\nos._exit(9)")
    assert caught.value.where == "13_1_small.ipynb, code cell 2"


def test_a_kernel_that_never_answers_is_a_clear_error(one_lesson, monkeypatch):
    spec = KernelSpec(argv=[sys.executable, "-c", "import time; time.sleep(60)"], display_name="x", language="python")
    monkeypatch.setattr(ThisInterpreter, "kernel_spec", spec)
    monkeypatch.setattr(runner, "START_SECONDS", 1)
    with pytest.raises(LabError, match="did not come up: Kernel didn't respond in 1 seconds") as caught:
        one_lesson("route = 'x'")
    assert caught.value.where == "13_1_small.ipynb"
    assert "close other programs" in caught.value.next_step


def test_a_missing_notebook_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "NOTEBOOKS", tmp_path)
    with pytest.raises(LabError, match=r"13_1_compute_route.ipynb is missing"):
        workbook.run_workbook("local_cpu", tmp_path / "pack", lesson="13.1")


def test_a_server_that_a_failed_lesson_left_behind_is_stopped(one_lesson, tmp_path, monkeypatch):
    from labkit.serving import running

    state = tmp_path / "state"
    state.mkdir()
    monkeypatch.setattr(runner, "STATE", state)
    monkeypatch.setattr(running, "STATE", state)
    leave = f"""
        import json, psutil, subprocess, sys, pathlib
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        server = dict(pid=child.pid, create_time=psutil.Process(child.pid).create_time(), host="127.0.0.1", port=8765)
        server |= dict(base_url="http://127.0.0.1:8765", model="m", revision="r", device="cpu", limits={{}})
        server |= dict(backend="onnx", started="2026-01-01T00:00:00+00:00")
        pathlib.Path({str(state)!r}, "server-8765.json").write_text(json.dumps(server))
        pathlib.Path({str(tmp_path)!r}, "pid").write_text(str(child.pid))
        raise RuntimeError("stop here")
    """
    with pytest.raises(LabError, match="stop here"):
        one_lesson("route = 'x'", leave)
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie"
    assert not list(state.iterdir())


# What a run tells


def events(one: Lesson) -> list[Progress]:
    cells = [Progress("cell", one, number, 30) for number in range(1, 31)]
    return [Progress("lesson", one), *cells, Progress("output", one, 30, 30, "step 9 | loss 1"), Progress("done", one)]


def test_a_run_reports_cells_and_printed_lines(one_lesson):
    seen = []
    one_lesson("route = 'x'", "print('working')\nprint('half', end='\\rdone\\n')", on_event=seen.append)
    assert [event.kind for event in seen][:2] == ["lesson", "cell"]
    assert seen[-1].kind == "done"
    assert "done" in [event.text for event in seen if event.kind == "output"]


def test_plain_progress_is_limited_in_rate(capsys):
    ticks = iter(range(1000))
    with RunDisplay(terminal=False, every=10, clock=lambda: float(next(ticks))) as show:
        for event in events(workbook.LESSONS[1]):
            show(event)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "13.1 Compute route: started"
    assert lines[-1].startswith("13.1 Compute route: done in")
    assert 3 <= len(lines) <= 8


def test_a_terminal_gets_a_bar_with_the_last_line(capsys):
    with RunDisplay(terminal=True) as show:
        for event in events(workbook.LESSONS[1]):
            show(event)
    assert "13.1 Compute route" in capsys.readouterr().out
