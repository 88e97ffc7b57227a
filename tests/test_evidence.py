"""Packs stay valid whatever happens while they are written."""

import json
import os

import pytest

from labkit.errors import LabError
from labkit.evidence import (
    Pack,
    csv_text,
    finite,
    git_commit,
    json_text,
    read_csv,
    read_json,
    read_manifest,
    sha256_of,
    write_atomically,
)


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


def test_csv_reads_back_what_was_written(tmp_path):
    rows = [{"a": 'says "hi", twice', "b": "two\nlines"}]
    (tmp_path / "x.csv").write_text(csv_text(rows, ("a", "b")), encoding="utf-8", newline="")
    assert read_csv(tmp_path / "x.csv") == rows
    with pytest.raises(ValueError, match="not in fieldnames"):
        csv_text([{"c": 1}], ("a", "b"))


@pytest.mark.parametrize(("text", "number"), [("1.5", 1.5), ("nan", None), ("inf", None), ("", None), (None, None)])
def test_only_finite_numbers_count(text, number):
    assert finite(text) == number


def test_commit_is_a_hash_or_unknown():
    assert git_commit() == "unknown" or len(git_commit().removesuffix("+changes")) == 40
