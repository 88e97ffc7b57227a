"""Hosted sessions: one file to upload, a cell that finds it, and a pack that outlives the machine."""

import json
import os
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from colab_session import STUB, code_cells, environment, run_cells, run_notebook

from labkit.commit import RECORD, git_commit
from labkit.errors import LabError
from labkit.evidence import MANIFEST, Pack, read_manifest
from labkit.layout import NOTEBOOKS, ROOT
from labkit.verification import Verdict, verify
from labkit.workbook import bundle, course, mirror, session

FIRST = NOTEBOOKS / "13_1_compute_route.ipynb"
BOOTSTRAP = [cell for cell in nbformat.read(FIRST, as_version=4).cells if cell.cell_type == "code"][1].source


# The bundle


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    return bundle.write_bundle(tmp_path_factory.mktemp("dist") / "workbook.zip").path


def test_the_bundle_is_small_and_holds_what_a_session_needs(archive):
    assert archive.stat().st_size < bundle.LARGEST == 40 * 10**6
    with zipfile.ZipFile(archive) as packed:
        names = packed.namelist()
    wanted = ("labkit/layout.py", "notebooks/13_1_compute_route.ipynb", "notebooks/routes/free_colab.yaml")
    wanted += ("data/course.yaml", "data/models/mini-instruct/config.json", "requirements-colab.txt", "pyproject.toml")
    assert not [name for name in wanted if f"workbook/{name}" not in names]
    assert not [name for name in names if "/evidence/" in name or "__pycache__" in name or "/." in name]


def test_the_same_files_give_the_same_bytes(archive, tmp_path):
    small = tmp_path / "small"
    for name in ("labkit/a.py", "notebooks/b.ipynb", "data/c.csv"):
        (small / name).parent.mkdir(parents=True)
        (small / name).write_text(name)
    one, two = (bundle.write_bundle(tmp_path / f"{n}.zip", small).path for n in (1, 2))
    os.utime(small / "labkit/a.py", (0, 0))
    three = bundle.write_bundle(tmp_path / "3.zip", small).path
    assert one.read_bytes() == two.read_bytes() == three.read_bytes()


def checkout(folder: Path) -> str:
    """A checkout of one commit, with one file under each folder of the bundle; returns the commit."""
    for name in ("labkit/a.py", "notebooks/b.ipynb", "data/c.csv"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(name)
    git = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *words], check=True)
    return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


def unpacked(root: Path, into: Path) -> Path:
    """A bundle of `root`, as its receiver has it."""
    path = bundle.write_bundle(into / "workbook.zip", root).path
    zipfile.ZipFile(path).extractall(into)
    return into / "workbook"


def test_an_unpacked_bundle_knows_its_commit_and_whether_it_was_changed(tmp_path):
    made = checkout(tmp_path / "one")
    received = unpacked(tmp_path / "one", tmp_path / "two")
    assert git_commit(tmp_path / "one") == git_commit(received) == made
    assert git_commit(unpacked(received, tmp_path / "three")) == made, "a bundle of a bundle"
    (received / "labkit" / "a.py").write_text("another")
    assert git_commit(received) == f"{made}+changes"
    (received / "labkit" / "a.py").unlink()
    assert git_commit(received) == f"{made}+changes"
    (tmp_path / "one" / "data" / "c.csv").write_text("another")
    changed = unpacked(tmp_path / "one", tmp_path / "four")
    (changed / "labkit" / "a.py").write_text("another")
    assert git_commit(changed) == f"{made}+changes"


@pytest.mark.parametrize("record", ["{", "[]", '{"git_commit": "x"}', '{"git_commit": 1, "files": {}}'])
def test_without_a_record_that_can_be_read_the_commit_is_unknown(tmp_path, record):
    assert git_commit(tmp_path) == "unknown"
    (tmp_path / RECORD).write_text(record)
    assert git_commit(tmp_path) == "unknown"


def test_what_is_not_in_git_stays_at_home(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "known.csv").write_text("a")
    git = ["git", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "data"], check=True)
    (tmp_path / "data" / "customers.csv").write_text("private")
    assert bundle.bundled_files(tmp_path) == ["data/known.csv"]


def test_a_bundle_that_is_too_large_is_refused_and_names_the_files(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "big.bin").write_bytes(os.urandom(2000))
    with pytest.raises(LabError, match=r"the largest files are data/big.bin"):
        bundle.write_bundle(tmp_path / "out" / "w.zip", tmp_path, largest=1000)
    assert not list((tmp_path / "out").iterdir())


# Badges


HERE = course.Course("https://github.com/someone/workbook", "v1.0")


@pytest.fixture
def notebooks(tmp_path) -> Path:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (folder / FIRST.name).write_bytes(FIRST.read_bytes())
    return folder


def test_without_a_repository_there_is_no_badge_and_the_text_says_how_to_upload():
    text = course.badge_text(course.Course("", "main"), "a.ipynb")
    assert "](http" not in text
    assert "labkit bundle" in text
    assert "upload" in text


def test_badges_lead_to_this_notebook_and_the_cell_to_the_archive(notebooks):
    assert course.write_badges(notebooks, HERE) == [FIRST.name]
    text = (notebooks / FIRST.name).read_text(encoding="utf-8")
    page = f"github/someone/workbook/blob/v1.0/notebooks/{FIRST.name}"
    assert f"(https://colab.research.google.com/{page})" in text
    assert f"(https://kaggle.com/kernels/welcome?src=https://github.com/{page.removeprefix('github/')})" in text
    assert r"address = \"https://github.com/someone/workbook/archive/v1.0.zip\"" in text
    assert course.write_badges(notebooks, HERE) == []
    course.write_badges(notebooks, course.Course("", "main"))
    assert (notebooks / FIRST.name).read_bytes() == FIRST.read_bytes()


def test_a_badge_that_differs_from_its_path_is_found(notebooks):
    course.write_badges(notebooks, HERE)
    assert course.wrong_badges(notebooks, HERE) == []
    (notebooks / FIRST.name).rename(notebooks / "13_1_renamed.ipynb")
    assert course.wrong_badges(notebooks, HERE) == ["13_1_renamed.ipynb"]


def test_a_notebook_without_the_cells_is_named(tmp_path):
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("x")]), tmp_path / "a.ipynb")
    with pytest.raises(LabError, match=r"a.ipynb lacks a cell with the id open-elsewhere"):
        course.write_badges(tmp_path, HERE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("repository: http://github.com/a/b\nref: main", "Colab opens notebooks from GitHub alone"),
        ("repository: https://example.org/a/b\nref: main", "Colab opens notebooks from GitHub alone"),
        ('repository: https://github.com/a/b"x\nref: main', "Colab opens notebooks from GitHub alone"),
        ("repository: ''\nref: ../x", "ref is"),
        ("repository: ''", "must hold repository and ref"),
        ("[", "cannot be read"),
    ],
)
def test_a_course_that_cannot_be_is_refused(tmp_path, text, message):
    (tmp_path / "course.yaml").write_text(text)
    with pytest.raises(LabError, match=message):
        course.load_course(tmp_path / "course.yaml")


def test_an_address_may_be_written_as_git_gives_it(tmp_path):
    (tmp_path / "course.yaml").write_text("repository: https://github.com/a/b.git\nref: main")
    assert course.load_course(tmp_path / "course.yaml").archive == "https://github.com/a/b/archive/main.zip"


# The bootstrap cell, where labkit is not importable yet


def bootstrap(folder: Path, source: str = BOOTSTRAP, **env: str) -> subprocess.CompletedProcess:
    code = f"route, evidence_dir = 'local_cpu', ''\n{source}\nprint(labkit.__file__, pack.folder)"
    held = {"PATH": os.environ["PATH"], "PYTHONPATH": str(STUB), **env}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=held, capture_output=True, text=True)


def test_the_cell_finds_the_workbook_in_an_uploaded_archive_and_the_pack_lies_in_it(archive, tmp_path):
    (tmp_path / "workbook.zip").write_bytes(archive.read_bytes())
    done = bootstrap(tmp_path)
    where = tmp_path / "workbook"
    assert done.stdout.splitlines()[-1] == f"{where}/labkit/__init__.py {where}/evidence/local_cpu", done.stderr
    assert done.stdout.startswith("Continue where you stopped: nothing is written yet, so begin with 13_1")
    made_of = git_commit()
    assert read_manifest(where / "evidence" / "local_cpu")["git_commit"] == made_of
    (tmp_path / "workbook.zip").unlink()
    assert bootstrap(tmp_path).returncode == 0, "unpacked once, it is found beside the notebook"


def test_a_newer_upload_replaces_the_workbook_and_leaves_the_pack(archive, tmp_path):
    (tmp_path / "workbook.zip").write_bytes(archive.read_bytes())
    assert bootstrap(tmp_path).returncode == 0
    layout = tmp_path / "workbook" / "labkit" / "layout.py"
    current = layout.read_text()
    layout.write_text(f"{current}\nOLD = True\n")
    assert bootstrap(tmp_path).returncode == 0
    assert "OLD" in layout.read_text(), "the upload is older than what was unpacked from it"
    later = time.time() + 60
    os.utime(tmp_path / "workbook.zip", (later, later))
    assert bootstrap(tmp_path).returncode == 0
    assert layout.read_text() == current
    (tmp_path / "workbook.zip").write_bytes(b"PK\x03\x04 half of an upload")
    os.utime(tmp_path / "workbook.zip", (later, later))
    assert bootstrap(tmp_path).returncode == 0, "half of a newer one leaves what is there"


def test_the_cell_copies_what_kaggle_lends_to_where_it_can_write(archive, tmp_path):
    lent, working = tmp_path / "input", tmp_path / "working"
    working.mkdir()
    zipfile.ZipFile(archive).extractall(lent / "datasets" / "someone" / "open-llm")
    for path in lent.rglob("*"):
        if path.is_file():
            path.chmod(0o444)
    source = BOOTSTRAP.replace('Path("/kaggle/input")', f"Path({str(lent)!r})")
    assert source != BOOTSTRAP
    done = bootstrap(working, source, KAGGLE_KERNEL_RUN_TYPE="Interactive")
    where = working / "workbook"
    assert done.stdout.splitlines()[-1] == f"{where}/labkit/__init__.py {where}/evidence/local_cpu", done.stderr
    assert bootstrap(working, source).returncode == 0, "copied once, it is found beside the notebook"


def test_the_cell_prefers_the_checkout_around_the_notebook(tmp_path):
    done = bootstrap(NOTEBOOKS, LABKIT_EVIDENCE=str(tmp_path / "pack"))
    assert done.stdout.splitlines()[-1] == f"{ROOT}/labkit/__init__.py {tmp_path}/pack", done.stderr


def test_the_cell_finds_an_archive_in_drive_and_at_the_courses_address(archive, tmp_path):
    drive = tmp_path / "one" / "drive" / "MyDrive"
    drive.mkdir(parents=True)
    (drive / "workbook.zip").write_bytes(archive.read_bytes())
    assert bootstrap(tmp_path / "one").returncode == 0
    (tmp_path / "two").mkdir()
    source = course.ADDRESS_LINE.sub(f'address = "{archive.as_uri()}"', BOOTSTRAP)
    assert bootstrap(tmp_path / "two", source).returncode == 0


@pytest.mark.parametrize("content", [None, b"PK\x03\x04 half of an upload"])
def test_without_a_whole_archive_the_cell_says_what_to_upload(tmp_path, content):
    if content:
        (tmp_path / "workbook.zip").write_bytes(content)
    done = bootstrap(tmp_path)
    assert done.returncode
    assert (
        done.stderr.strip()
        == "labkit is not here: upload the whole workbook.zip that `labkit bundle` makes, then run again."
    )


def test_an_address_that_cannot_be_reached_is_told(tmp_path):
    source = course.ADDRESS_LINE.sub(f'address = "{(tmp_path / "gone.zip").as_uri()}"', BOOTSTRAP)
    done = bootstrap(tmp_path, source)
    assert "gone.zip cannot be reached" in done.stdout
    assert done.stderr.startswith("labkit is not here: upload"), done.stderr


# The second copy


def wrote(folder: Path, name: str, text: str, written: str = "2026-11-27T10:00:00+00:00") -> Pack:
    pack = Pack(folder, "free_colab")
    pack.write_text(name, text, "13.1")
    manifest = read_manifest(folder)
    manifest["files"][name]["written"] = written
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return pack


def copies(tmp_path: Path) -> list[mirror.Copy]:
    return [
        mirror.FolderCopy(tmp_path / "drive", "Drive", "free_colab"),
        mirror.ZipCopy(tmp_path / "saved.zip", "a zip file", "free_colab"),
    ]


@pytest.mark.parametrize("kind", [0, 1])
def test_a_saved_pack_is_the_same_pack_in_the_next_session(tmp_path, kind):
    copy = copies(tmp_path)[kind]
    pack = wrote(tmp_path / "one", "a.txt", "a")
    pack.write_text("levers/b.txt", "b", "13.6")
    pack.path("a.txt").write_text("a, with notes typed in by hand")
    assert set(mirror.save(pack, copy)) == {"a.txt", "levers/b.txt"}
    again = Pack(tmp_path / "two", "free_colab")
    assert set(mirror.restore(again, copies(tmp_path)[kind])) == {"a.txt", "levers/b.txt"}
    assert again.path("a.txt").read_text() == "a, with notes typed in by hand"
    assert read_manifest(again.folder)["files"] == read_manifest(pack.folder)["files"]
    assert mirror.restore(again, copy) == []


@pytest.mark.parametrize("kind", [0, 1])
def test_of_two_sessions_the_later_file_wins_and_none_is_lost(tmp_path, kind):
    copy = copies(tmp_path)[kind]
    early = wrote(tmp_path / "one", "a.txt", "early", "2026-11-27T10:00:00+00:00")
    mirror.save(early, copy)
    late = wrote(tmp_path / "two", "a.txt", "late", "2026-11-27T11:00:00+00:00")
    late.write_text("b.txt", "b", "13.1")
    mirror.save(late, copies(tmp_path)[kind])
    early.write_text("c.txt", "c", "13.1")
    mirror.save(early, copy)
    assert early.path("a.txt").read_text() == "late"
    assert set(copy.entries()) == {"a.txt", "b.txt", "c.txt"}


def test_what_was_removed_on_purpose_does_not_come_back(tmp_path):
    copy = copies(tmp_path)[0]
    pack = wrote(tmp_path / "one", "a.txt", "a")
    known = mirror.save(pack, copy)
    pack.path("a.txt").unlink()
    pack.write_text("b.txt", "b", "13.1")
    mirror.save(pack, copy, known)
    assert not pack.path("a.txt").exists()
    assert set(copy.entries()) == {"b.txt"}


def test_a_file_whose_copy_was_lost_is_copied_again(tmp_path):
    copy = copies(tmp_path)[0]
    pack = wrote(tmp_path / "one", "a.txt", "a")
    known = mirror.save(pack, copy)
    (tmp_path / "drive" / "a.txt").unlink()
    mirror.save(pack, copy, known)
    assert (tmp_path / "drive" / "a.txt").read_text() == "a"


@pytest.mark.parametrize("name", ["../out.txt", "/out.txt", "a/../../out.txt", "C:out.txt", "..\\out.txt", MANIFEST])
def test_a_saved_pack_cannot_write_beside_the_pack(tmp_path, name):
    entry = {"sha256": "0" * 64, "bytes": 1, "written": "2027-01-01T00:00:00+00:00", "lesson": "13.1"}
    manifest = {"schema": 1, "route": "free_colab", "git_commit": "x", "files": {name: entry}}
    with zipfile.ZipFile(tmp_path / "saved.zip", "w") as made:
        made.writestr(MANIFEST, json.dumps(manifest))
        if name != MANIFEST:
            made.writestr(name, "x")
    pack = Pack(tmp_path / "deep" / "pack", "free_colab")
    with pytest.raises(LabError, match="a file outside of itself"):
        mirror.restore(pack, copies(tmp_path)[1])
    assert not list(tmp_path.rglob("out.txt"))


def test_a_damaged_or_foreign_copy_is_a_clear_error(tmp_path):
    pack, copy = Pack(tmp_path / "pack", "free_colab"), copies(tmp_path)[1]
    copy.path.write_bytes(b"not a zip")
    with pytest.raises(LabError, match=r"saved\.zip is no zip file"):
        mirror.restore(pack, copy)
    with zipfile.ZipFile(copy.path, "w") as made:
        made.writestr("a.txt", "x")
    with pytest.raises(LabError, match="holds no manifest"):
        mirror.restore(pack, copy)
    with zipfile.ZipFile(copy.path, "w") as made:
        made.writestr(MANIFEST, "{}")
    with pytest.raises(LabError, match="is not a manifest"):
        mirror.restore(pack, copy)
    copy.path.unlink()
    mirror.save(wrote(tmp_path / "other", "a.txt", "a"), copy)
    with pytest.raises(LabError, match="made on the route free_colab, not rented_gpu"):
        mirror.restore(Pack(tmp_path / "rented", "rented_gpu"), replace(copy, route="rented_gpu"))


def test_a_full_drive_is_told_and_the_pack_stays(tmp_path, capsys):
    pack = wrote(tmp_path / "pack", "a.txt", "a")
    (tmp_path / "drive").write_text("a file where a folder should be")
    said = session.Keeper(pack, copies(tmp_path)[0]).keep()
    assert said.startswith("NOT saved to Drive: ")
    assert "still on this session's disk" in said
    assert pack.path("a.txt").read_text() == "a"


# What is said first


def test_the_first_line_names_what_comes_next(tmp_path):
    pack = Pack(tmp_path, "free_colab")
    assert "nothing is written yet, so begin with 13_1_compute_route.ipynb" in session.where_you_stopped(pack)
    pack.write_text("edge_report.json", "x", "13.7")
    said = session.where_you_stopped(pack)
    assert said.endswith("environment_report.txt comes next; 0 of 20 required artifacts are written."), "13.7 was run"
    for name in ("environment_report.txt", "compute_route.md", "colab_notes.md", "requirements-freeze.txt"):
        pack.write_text(name, "x", "13.1")
    said = session.where_you_stopped(pack)
    assert said.startswith("Continue where you stopped: 13_2_run_train_serve.ipynb, first_run.md comes next; 4 of 20")
    pack.write_text("first_run.md", "x", "13.2")
    pack.write_text("openllm_gpu_training_run/sample.txt", "x", "13.2")
    assert "gpu_train_log.txt comes next; 6 of 20" in session.where_you_stopped(pack)
    pack.path("compute_route.md").unlink()
    assert "compute_route.md comes next" in session.where_you_stopped(pack), "a file that is gone is not written"


def test_everything_written_leads_to_the_checklist(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "_there", lambda *_: True)
    assert "13_0_checklist.ipynb reads the whole pack" in session.where_you_stopped(Pack(tmp_path, "local_cpu"))


def test_a_hosted_session_is_told_to_choose_its_route_and_to_mount_drive(monkeypatch):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "x")
    route, mount = session.hints("local_cpu")
    assert 'route = "free_colab"' in route
    assert "Mount" in mount
    monkeypatch.delenv("COLAB_RELEASE_TAG")
    assert session.hints("free_colab") == []


def test_kaggle_keeps_a_zip_file_and_takes_one_up_from_its_inputs(tmp_path, monkeypatch):
    for name, value in {"CONTENT": tmp_path / "none", "ROOT": tmp_path / "working" / "workbook"}.items():
        monkeypatch.setattr(session, name, value)
    monkeypatch.setattr(session, "KAGGLE_INPUT", tmp_path / "input")
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    before = wrote(tmp_path / "before", "a.txt", "a")
    (tmp_path / "input" / "earlier").mkdir(parents=True)
    saved = mirror.ZipCopy(tmp_path / "input" / "earlier" / "evidence_free_colab.zip", "x", "free_colab")
    mirror.save(before, saved)
    pack = Pack(tmp_path / "pack", "free_colab")
    keeper = session.Keeper(pack, session.second_copy(pack))
    assert keeper.take_up() == ["Taken up from the input evidence_free_colab.zip: 1 files."]
    assert keeper.keep() == "Saved: 1 files of the pack in evidence_free_colab.zip in the output folder."
    assert (tmp_path / "working" / "evidence_free_colab.zip").is_file()


# A whole session, killed half way


def test_a_killed_session_is_finished_by_the_next_one(archive, tmp_path):
    """13.1 in the Colab-like environment: the machine goes after its report, and the next one ends the lesson."""
    drive, downloads = tmp_path / "drive", tmp_path / "downloads"
    drive.mkdir()
    (drive / "workbook.zip").write_bytes(archive.read_bytes())
    env = environment(drive, downloads)
    mount = "import os\nfrom google.colab import drive\ndrive.mount(os.getcwd() + '/drive')"
    said = {}
    for machine, kill_before in (("first", 4), ("second", 0)):
        content = tmp_path / machine
        content.mkdir()
        said[machine] = run_notebook(FIRST.name, content, env, {"route": "free_colab"}, kill_before, mount)
    saved = drive / "open-llm-workbook" / "evidence" / "free_colab"
    where = "Drive, open-llm-workbook/evidence/free_colab"
    assert said["first"][2].splitlines()[0].startswith("Continue where you stopped: nothing is written yet")
    assert f"Saved: 2 files of the pack in {where}" in said["first"][3]
    begin = said["second"][2].splitlines()
    assert begin[0].startswith(
        "Continue where you stopped: 13_1_compute_route.ipynb, compute_route.md comes next; 2 of 20"
    )
    assert begin[1] == f"Taken up from {where}: 2 files."
    assert not [line for line in begin if "Restart" in line]
    for folder in (saved, tmp_path / "second" / "workbook" / "evidence" / "free_colab"):
        verdicts = {item.name: item.verdict for item in verify(folder, lesson="13.1").artifacts}
        assert set(verdicts.values()) == {Verdict.SUPPORTED}, verdicts
    notes = (saved / "colab_notes.md").read_text(encoding="utf-8")
    assert f"- Where the pack is saved: {where}" in notes
    assert "since its last snapshot, which is in Drive as well" in notes
    assert not downloads.exists(), "nothing is downloaded where Drive keeps it, nor where nobody looks on"


QUICK = """
from labkit.workbook import unfinished
unfinished.LOOK_SECONDS = 0.2
pack = labkit.begin("""
TOLD = """
from types import SimpleNamespace
from labkit import plots
from labkit.training.resume import Snapshots
chat, load = SimpleNamespace(device="cpu"), Snapshots.load
Snapshots.load = lambda self, trainer: print("went on:", load(self, trainer), trainer.state()["step"] > 0)
"""


def training_cells(mount: str) -> list[str]:
    """13.2 up to its training, which is made short, takes snapshots often and tells where it begins."""
    parameters, begin, *rest = code_cells("13_2_run_train_serve.ipynb")
    sizes = {'"local_cpu"': '"free_colab"', "fallback_train_steps = 300": "fallback_train_steps = 80"}
    for old, new in {**sizes, "fallback_batch_size = 12": "fallback_batch_size = 4"}.items():
        parameters = parameters.replace(old, new, 1)
    train = next(cell for cell in rest if "continue_into_pack(" in cell)
    often = train.replace("on_row=live.update", "on_row=live.update, snapshot_seconds=0")
    assert often != train
    return [mount, parameters, begin.replace("\npack = labkit.begin(", QUICK), TOLD, often]


def test_a_training_goes_on_where_the_machine_before_was_taken_away(archive, tmp_path):
    drive = tmp_path / "drive"
    drive.mkdir()
    (drive / "workbook.zip").write_bytes(archive.read_bytes())
    env = environment(drive, tmp_path / "downloads")
    cells = training_cells("import os\nfrom google.colab import drive\ndrive.mount(os.getcwd() + '/drive')")
    saved = drive / "open-llm-workbook" / "evidence" / "free_colab"
    snapshot = saved / "openllm_gpu_training_run.resume.pt"
    said = {}
    for machine, kill_at in (("first", snapshot), ("second", None)):
        (tmp_path / machine).mkdir()
        said[machine] = run_cells(cells, tmp_path / machine, env, kill_at)
        assert snapshot.exists() == (machine == "first"), said
    assert "went on: False False" in said["first"][4]
    assert f"Taken up: a training that was under way ({snapshot.name})" in said["second"][2]
    assert "went on: True True" in said["second"][4]
    log = (saved / "openllm_gpu_training_run" / "training_log.csv").read_text().splitlines()
    assert log[-1].startswith("80,"), log
