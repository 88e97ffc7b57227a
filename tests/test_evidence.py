"""Packs stay valid whatever happens while they are written."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from labkit.errors import LabError
from labkit.evidence import (
    Pack,
    csv_text,
    finite,
    json_text,
    read_csv,
    read_json,
    read_manifest,
    sha256_of,
    write_atomically,
)
from labkit.verification import Verdict, verify


def test_manifest_names_every_artifact_with_its_hash(tmp_path):
    pack = Pack(tmp_path / "pack", "local_cpu")
    pack.write_text("note.md", "hello\n", "13.1")
    pack.write_json("facts.json", {"a": 1}, "13.2")
    pack.write_csv("rows.csv", [{"a": 1, "b": 2}], ("a", "b"), "13.2")
    manifest = read_manifest(pack.folder)
    assert manifest["route"] == "local_cpu"
    assert set(manifest["files"]) == {"note.md", "facts.json", "rows.csv"}
    for name, entry in manifest["files"].items():
        assert entry["sha256"] == sha256_of(pack.path(name))
        assert entry["bytes"] == pack.path(name).stat().st_size
    assert manifest["files"]["note.md"]["lesson"] == "13.1"


def test_writing_again_keeps_one_entry_and_the_new_hash(tmp_path):
    pack = Pack(tmp_path, "local_cpu")
    for text in ("one", "two"):
        pack.write_text("note.md", text, "13.1")
    assert read_manifest(tmp_path)["files"]["note.md"]["sha256"] == sha256_of(tmp_path / "note.md")
    assert sorted(os.listdir(tmp_path)) == ["manifest.json", "note.md"]


def test_a_folder_is_recorded_file_by_file_and_lost_files_leave_the_manifest(tmp_path):
    pack = Pack(tmp_path, "local_cpu")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a.txt").write_text("a", encoding="utf-8")
    (tmp_path / "run" / "b.txt").write_text("b", encoding="utf-8")
    pack.record("run", "13.2")
    assert set(read_manifest(tmp_path)["files"]) == {"run/a.txt", "run/b.txt"}
    (tmp_path / "run" / "b.txt").unlink()
    pack.write_text("c.txt", "c", "13.2")
    assert set(read_manifest(tmp_path)["files"]) == {"run/a.txt", "c.txt"}


def test_opening_again_keeps_the_pack_and_another_route_is_refused(tmp_path):
    Pack(tmp_path, "local_cpu").write_text("note.md", "x", "13.1")
    assert "note.md" in read_manifest(Pack(tmp_path, "local_cpu").folder)["files"]
    with pytest.raises(LabError, match="made on the route local_cpu, not rented_gpu"):
        Pack(tmp_path, "rented_gpu")


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    write_atomically(tmp_path / "note.md", b"old")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LabError, match=r"could not write note\.md: No space left on device"):
        write_atomically(tmp_path / "note.md", b"new")
    assert (tmp_path / "note.md").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["note.md"]


def test_a_folder_that_is_a_file_is_a_clear_error(tmp_path):
    (tmp_path / "taken").write_text("x", encoding="utf-8")
    with pytest.raises(LabError, match="could not write"):
        Pack(tmp_path / "taken" / "pack", "local_cpu")


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "[]",
        "{",
        '{"schema": 2, "route": "local_cpu", "files": {}}',
        '{"schema": 1, "route": 3, "files": {}}',
        '{"schema": 1, "route": "local_cpu", "files": []}',
        '{"schema": 1, "route": "local_cpu", "files": {"a": {"sha256": 1}}}',
        '{"schema": 1, "route": "local_cpu", "files": {"a": 1}}',
    ],
)
def test_a_broken_manifest_is_a_clear_error(tmp_path, manifest):
    (tmp_path / "manifest.json").write_text(manifest, encoding="utf-8")
    with pytest.raises(LabError, match=r"manifest\.json"):
        read_manifest(tmp_path)


def test_json_in_a_pack_is_json():
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_text({"loss": float("nan")})
    assert json.loads(json_text({"name": "caf\u00e9"})) == {"name": "caf\u00e9"}


@pytest.mark.parametrize("text", ["NaN", '{"a": Infinity}', "[1]", "{", "\ufeff{}"])
def test_what_is_not_a_json_object_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    with pytest.raises(LabError, match=r"x\.json"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("content", [b"a,b\n1\n", b"a,b\n1,2,3\n", b"\xff\xff", b'a,b\n"1,2\n'])
def test_a_ragged_or_broken_csv_is_refused(tmp_path, content):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(LabError, match=r"x\.csv"):
        read_csv(tmp_path / "x.csv")


def test_an_empty_csv_has_no_rows(tmp_path):
    (tmp_path / "x.csv").touch()
    assert read_csv(tmp_path / "x.csv") == []


def test_csv_reads_back_what_was_written(tmp_path):
    rows = [{"a": 'says "hi", twice', "b": "two\nlines"}, {"a": "a\rb", "b": "\r\n"}]
    (tmp_path / "x.csv").write_text(csv_text(rows, ("a", "b")), encoding="utf-8", newline="")
    assert read_csv(tmp_path / "x.csv") == rows
    with pytest.raises(ValueError, match="not in fieldnames"):
        csv_text([{"c": 1}], ("a", "b"))


@pytest.mark.parametrize(("text", "number"), [("1.5", 1.5), ("nan", None), ("inf", None), ("", None), (None, None)])
def test_only_finite_numbers_count(text, number):
    assert finite(text) == number


# Killed, full, read-only


class Killed(BaseException):
    """What a kill is to the code: nothing after it happens, not even what stands in a finally."""


def rebuild(folder, seed: int) -> None:
    """What lessons write, in their order, with other numbers for another seed: groups, single files, a folder."""
    pack = Pack(folder, "local_cpu")
    pack.write_text("environment_report.txt", f"Device: cpu\nseed: {seed}\n", "13.1")
    with pack.replacing("run", "trace.txt"):
        for name in ("run/log.csv", "run/report.json", "trace.txt"):
            write_atomically(pack.path(name), f"loss {seed}".encode())
        pack.record("run", "13.2")
        pack.record("trace.txt", "13.2")
    with pack.replacing("eval_results.csv", "eval_summary.json"):
        pack.write_text("eval_results.csv", f"rows of {seed}\n", "13.2")
        pack.write_json("eval_summary.json", {"seed": seed}, "13.2")


GROUPS = (("run/log.csv", "run/report.json", "trace.txt"), ("eval_results.csv", "eval_summary.json"))


@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_write_leaves_no_file_that_is_vouched_for_wrongly(tmp_path, monkeypatch, after):
    """Every place at which `labkit run` may be killed, before and after each rename, and the run that follows."""
    monkeypatch.setattr("labkit.evidence.git_commit", lambda: "unknown")
    real, countdown = Path.replace, [0]

    def replace(self, target):
        countdown[0] -= 1
        if countdown[0] < 0 or (countdown[0] == 0 and not after):
            raise Killed
        moved = real(self, target)
        if countdown[0] == 0:
            raise Killed
        return moved

    moments = 0
    for number in range(1, 100):
        folder = tmp_path / str(number)
        rebuild(folder, seed=1)
        countdown[0] = number
        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", replace)
            try:
                rebuild(folder, seed=2)
                break
            except Killed:
                moments += 1
        listed = read_manifest(folder)["files"]
        for name, entry in listed.items():
            assert sha256_of(folder / name) == entry["sha256"], (number, name)
        for group in GROUPS:
            texts = [(folder / name).read_text() for name in group if name in listed]
            seeds = {"".join(c for c in text if c.isdigit()) for text in texts}
            assert len(seeds) <= 1, (number, group, seeds)
        rebuild(folder, seed=2)
        assert len(read_manifest(folder)["files"]) == 6
    assert moments > 10


def test_a_process_that_is_really_killed_leaves_a_pack_that_verifies(tmp_path):
    """SIGKILL at moments that nobody chose; the next run completes the pack."""
    program = (
        "import sys; from labkit.evidence import Pack\n"
        "pack = Pack(sys.argv[1], 'local_cpu'); print('open', flush=True)\n"
        "while True:\n"
        "    for n in range(5): pack.write_text(f'note_{n % 3}.md', '- Key: value\\n' * (n + 1), '13.1')\n"
    )
    for number in range(4):
        child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "p")], stdout=subprocess.PIPE)
        child.stdout.readline()
        time.sleep(0.02 + 0.03 * number)
        child.kill()
        child.wait()
        child.stdout.close()
        for name, entry in read_manifest(tmp_path / "p")["files"].items():
            assert sha256_of(tmp_path / "p" / name) == entry["sha256"]
        verification = verify(tmp_path / "p")
        assert verification.exit_code == 1
        assert not [f for f in verification.findings if f.verdict is Verdict.CONTRADICTED]


def test_a_step_that_fails_leaves_what_was_there_and_vouched_for(tmp_path):
    pack = Pack(tmp_path, "local_cpu")
    pack.write_text("a.md", "old", "13.1")
    with pytest.raises(RuntimeError), pack.replacing("a.md"):
        raise RuntimeError
    assert read_manifest(tmp_path)["files"]["a.md"]["sha256"] == sha256_of(tmp_path / "a.md")


def test_a_full_disk_is_a_clear_error_and_loses_nothing(tmp_path):
    """A real limit on the size of files, in a process of its own."""
    program = (
        "import resource, sys; from labkit.evidence import Pack; from labkit.errors import LabError\n"
        "pack = Pack(sys.argv[1], 'local_cpu'); pack.write_text('a.md', 'old', '13.1')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: pack.write_text('a.md', 'x' * 100_000, '13.1')\n"
        "except LabError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "p")], capture_output=True, text=True, check=True
    )
    assert "could not write a.md: File too large" in done.stdout
    assert "what was there before is untouched" in done.stdout
    assert (tmp_path / "p" / "a.md").read_text() == "old"
    assert read_manifest(tmp_path / "p")["files"]["a.md"]["sha256"] == sha256_of(tmp_path / "p" / "a.md")
    assert sorted(os.listdir(tmp_path / "p")) == ["a.md", "manifest.json"]


def test_a_read_only_folder_is_a_clear_error(tmp_path, monkeypatch):
    def refuse(*_args, **_named):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    with pytest.raises(LabError, match=r"could not write manifest\.json: Permission denied"):
        Pack(tmp_path / "p", "local_cpu")


def test_leftovers_of_old_kills_are_swept_and_never_recorded(tmp_path):
    pack = Pack(tmp_path, "local_cpu")
    (tmp_path / "run").mkdir()
    for name, age in (("run/.log.csv.abcdefgh", 7200), ("run/.log.csv.ijklmnop", 0)):
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (time.time() - age, time.time() - age))
    pack.record("run", "13.2")
    assert read_manifest(tmp_path)["files"] == {}
    Pack(tmp_path, "local_cpu")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".log.csv.ijklmnop"]
