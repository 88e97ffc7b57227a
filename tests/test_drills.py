"""The failure drills: each failure is provoked on a real server process, and every word of the record is read back."""

import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from healthy_pack import healthy_folder, rewrite_json
from test_cli import refusal
from tiny_server import chat

from labkit.drills import (
    DRILLS,
    Answer,
    Drill,
    NotPossible,
    answering,
    drill_rows,
    outcome,
    require_recovery,
    run_drills,
    write_drill,
)
from labkit.drills import site as sites
from labkit.drills.record import NotPossibleHere
from labkit.errors import LabError
from labkit.evidence import Pack, read_json
from labkit.serving import process, runtimes
from labkit.serving.ports import free_port
from labkit.verification import Verdict, verify

FILE = "failure_drill.json"
FULL = Path("/dev/full")  # every write on it fails as on a full disk
DONE = Drill(
    name="queue_full",
    provoked="4 requests at once",
    observed={"statuses": [200, 503]},
    detected="one client got 503",
    recovered="asked again",
    recovered_ok=True,
    answered=Answer(200, 12.0),
    seconds=2.0,
    time="2026-01-05T10:00:00+00:00",
)


@pytest.fixture(scope="module")
def drilling(tiny_model_folder, tmp_path_factory):
    """A real `labkit drill --all` under way: its process and its pack."""
    folder = tmp_path_factory.mktemp("drilled") / "pack"
    command = [sys.executable, "-m", "labkit.cli", "drill", "--all", "--device", "cpu"]
    command += ["--model", str(tiny_model_folder), "--out", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as run:
        yield run, folder
        run.terminate()


@pytest.fixture(scope="module")
def drilled(drilling):
    """The pack and the printed lines of the run when it has ended."""
    run, folder = drilling
    printed, _ = run.communicate(timeout=600)
    assert run.returncode == 0, printed
    return folder, printed


@pytest.fixture
def record(drilled):
    """A drill's record by its name; a test of one that this machine cannot do is skipped with the record's reason."""

    def find(name: str) -> dict:
        held = read_json(drilled[0] / FILE)
        for left in held["not_possible_here"]:
            if left["name"] == name:
                pytest.skip(left["reason"])
        return next(drill for drill in held["drills"] if drill["name"] == name)

    return find


@pytest.fixture
def pack(tmp_path_factory, tmp_path) -> Pack:
    return Pack(shutil.copytree(healthy_folder(tmp_path_factory), tmp_path / "local_cpu"), "local_cpu")


def finding(folder: Path):
    return next(f for f in verify(folder).artifacts if f.name == FILE)


@pytest.mark.skipif(not FULL.is_char_device(), reason="this system has no /dev/full")
def test_a_server_starts_answers_and_ends_where_no_line_of_its_log_can_be_written(drilling, tiny_model_folder):
    """First, and beside the drills: both wait for torch most of the time."""
    with runtimes.start_server(str(tiny_model_folder), port=free_port(), device="cpu", log=FULL) as server:
        assert chat(server.base_url).status_code == 200
        assert server.stop()["signal"] == "SIGTERM"
        assert server.process.returncode == 0
    assert "its last words: none" in str(runtimes._reason(FULL, "the server ended"))


# What the real run left


def test_every_drill_of_the_menu_recovers_and_is_answered_afterwards(drilled, tiny_model_folder):
    folder, printed = drilled
    held = read_json(folder / FILE)
    assert [d["name"] for d in held["drills"]] + [n["name"] for n in held["not_possible_here"]] == list(DRILLS)
    for drill in held["drills"]:
        assert drill["recovered_ok"] is True, drill
        assert (drill["answered"]["status"], drill["answered"]["error"]) == (200, "none")
        assert 0 < drill["answered"]["latency_ms"] / 1000 < drill["seconds"]
        assert f"{drill['name']}: recovered in {drill['seconds']:.1f} s" in printed
    assert finding(folder).verdict is Verdict.SUPPORTED
    text = (folder / FILE).read_text()
    for path in (tiny_model_folder.parent, folder.parent, Path.home(), Path(sys.executable).parent):
        assert f"{path}/" not in text


@pytest.mark.parametrize(
    ("name", "command", "said"),
    [
        ("port_taken", "python -m labkit.serving", "is already in use by another program"),
        ("model_path_wrong", "--model=data/models/no-such-model", "no model folder called no-such-model"),
        ("out_of_memory", "python -m labkit.drills.limited 16", "does not hold the model too-large"),
        ("key_missing_at_start", "--host=0.0.0.0", "no API key is set"),
    ],
)
def test_a_start_that_fails_gives_its_own_reason_and_the_next_step(record, name, command, said):
    drill = record(name)
    assert command in drill["provoked"]
    assert said in drill["observed"]["message"]
    assert ". Next: " in drill["observed"]["message"]
    assert drill["observed"]["message"] in drill["detected"]
    assert drill["observed"]["exit_code"] == 2
    assert 0 < drill["observed"]["seconds"] < drill["seconds"]


def test_too_little_memory_is_told_in_the_systems_own_words(record):
    assert "annot allocate memory" in record("out_of_memory")["observed"]["message"]


def test_a_request_without_the_key_gets_401(record):
    observed = record("key_missing_in_request")["observed"]
    assert observed["statuses"] == [401, 401]
    assert "Authorization" in observed["message"]


def test_of_overlapping_requests_one_is_answered_and_the_others_are_told_when_to_come_back(record):
    observed = record("queue_full")["observed"]
    assert sorted(observed["statuses"])[0] == 200
    assert sorted(observed["statuses"])[-1] == 503
    assert int(observed["retry_after"]) >= 1
    assert observed["message"] != "none"


def test_a_client_that_does_not_read_keeps_nobody_from_being_answered_and_is_cut_off(record):
    observed = record("slow_client")["observed"]
    assert observed["statuses_of_others"].count(200) == 3
    assert set(observed["statuses_of_others"]) <= {200, 503}
    assert observed["connection_ended"] is True
    assert observed["seconds_unread"] > answering.UNREAD.request_seconds - 1
    assert observed["bytes_read_later"] > 0
    assert observed["stream_ended"] != "data: [DONE]"


def test_a_killed_server_breaks_the_stream_and_labkit_stop_says_so(record):
    observed = record("backend_crash")["observed"]
    assert observed["client"].startswith(("IncompleteRead", "ConnectionReset"))
    assert "no server answers" in observed["health"]
    assert "names a process that is gone" in observed["state_file"]
    assert "already ended without being stopped" in observed["labkit_stop"]
    assert observed["labkit_stop_exit_code"] == 2


def test_a_log_that_cannot_grow_costs_no_answer_and_grows_again(record):
    observed = record("log_disk_full")["observed"]
    before, during, after = observed["log_bytes_before_during_after"]
    assert observed["statuses_without_log"] == [200, 200, 200, 200]
    assert 0 < before == during < after


# What cannot be done, and bad input


def test_a_drill_that_the_platform_cannot_do_says_so_and_claims_nothing(pack, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    [record] = run_drills(["out_of_memory"])
    with pytest.raises(NotPossibleHere, match="only Linux sets the limits of a running process"):
        answering._no_larger_files(os.getpid(), 0).__enter__()
    assert (type(record), record.reason[:20]) == (NotPossible, "only Linux enforces ")
    assert outcome(record).startswith("out_of_memory: not possible here: ")
    require_recovery([record])
    write_drill(pack, [record])
    assert [left["name"] for left in read_json(pack.path(FILE))["not_possible_here"]] == ["out_of_memory"]
    assert "out_of_memory not possible here" in finding(pack.folder).detail


def test_a_port_that_is_really_in_use_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(LabError, match="already in use"):
        list(run_drills(["port_taken"], other.getsockname()[1]))


def test_a_start_that_does_not_fail_is_no_drill(monkeypatch):
    monkeypatch.setattr(sites, "START_SECONDS", 0.5)
    with sites.Site(free_port()) as site, pytest.raises(LabError, match="did not fail within"):
        site.failed_start("", "")


def test_nothing_answers_is_status_0_and_a_refusal_is_quoted():
    with sites.Site(free_port()) as site:
        answer = site.ask()
    assert (answer.status, answer.error.partition("(")[0]) == (0, "ConnectionRefusedError")
    assert sites._refusal(b'{"error": {"message": "no"}}') == "no"
    assert sites._refusal(b"<html>") == "<html>"
    assert sites._refusal(b"") == "an empty body"


@pytest.mark.parametrize(
    ("words", "message"),
    [((), "no drill is named"), (("moon", "port_taken"), "there is no drill called moon")],
)
def test_the_command_names_what_is_wrong_and_leaves_no_pack(tmp_path, capsys, words, message):
    assert message in refusal(capsys, "drill", *words, "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_list_shows_every_drill_with_its_sentence(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["labkit", "drill", "--list"])
    with pytest.raises(SystemExit) as ended:
        sys.modules["labkit.cli"].main()
    assert ended.value.code in (0, None)
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()] == list(DRILLS)
    assert all(len(line.split()) > 4 for line in printed.splitlines())


# The file


def test_a_new_record_replaces_the_one_of_its_name_and_keeps_the_others(pack):
    write_drill(pack, [NotPossible("queue_full", "no clients", DONE.time)])
    write_drill(pack, [DONE])
    held = read_json(pack.path(FILE))
    assert [drill["name"] for drill in held["drills"]] == ["port_taken", "model_path_wrong", "queue_full"]
    assert held["not_possible_here"] == []
    assert finding(pack.folder).verdict is Verdict.SUPPORTED
    assert "queue_full recovered in 2.0 s" in finding(pack.folder).detail


def test_the_rows_say_what_happened_what_could_not_and_survive_a_damaged_record(pack):
    write_drill(pack, [DONE, NotPossible("out_of_memory", "only Linux", DONE.time)])
    rows = {row["name"]: row for row in drill_rows(pack)}
    assert rows["queue_full"]["afterwards"] == "200 in 12 ms"
    assert rows["queue_full"]["detected"] == "one client got 503"
    assert rows["out_of_memory"]["provoked"] == "not possible here: only Linux"
    assert {tuple(row) for row in rows.values()} == {tuple(rows["queue_full"])}
    rewrite_json(pack.folder, FILE, drills=[{"name": "queue_full"}], not_possible_here=[])
    assert [row["afterwards"] for row in drill_rows(pack)] == [""]


@pytest.mark.parametrize("damaged", ["{", '{"drills": 7}', '{"drills": [7]}'])
def test_a_damaged_file_is_replaced(pack, damaged):
    pack.path(FILE).write_text(damaged)
    write_drill(pack, [DONE])
    assert [drill["name"] for drill in read_json(pack.path(FILE))["drills"]] == ["queue_full"]


def test_a_drill_that_did_not_recover_fails_the_command_and_is_not_supported(pack):
    failed = replace(DONE, recovered_ok=False)
    with pytest.raises(LabError, match="did not recover from queue_full"):
        require_recovery([DONE, failed])
    assert "queue_full: NOT recovered" in outcome(failed)
    write_drill(pack, [failed])
    assert finding(pack.folder).verdict is Verdict.NOT_YET


def test_a_recovery_that_nothing_answered_is_a_contradiction(pack):
    for answer in (Answer(503, 3.0), Answer(200, 0.0)):
        write_drill(pack, [replace(DONE, answered=answer)])
        assert finding(pack.folder).verdict is Verdict.CONTRADICTED
    write_drill(pack, [replace(DONE, observed={})])
    assert "not filled: observed" in finding(pack.folder).detail


def test_a_drill_both_run_and_impossible_is_a_contradiction(pack):
    left = [{"name": "port_taken", "reason": "no ports", "time": DONE.time}]
    rewrite_json(pack.folder, FILE, not_possible_here=left)
    assert finding(pack.folder).verdict is Verdict.CONTRADICTED


# What the drills asked of the server's start


def test_a_log_that_cannot_be_opened_is_named_before_anything_starts(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LabError, match=r"log server\.log cannot be opened"):
        runtimes.start_server(port=free_port(), log=tmp_path / "file" / "server.log")


@pytest.mark.parametrize(
    "said", ["", "CUDA out of memory. Tried to allocate 2 GiB\nmore", "[enforce fail] can't allocate memory"]
)
def test_too_little_memory_is_a_labkit_error_and_other_errors_stay_what_they_are(said, monkeypatch):
    def fails(*_, **__):
        raise error

    settings = process.ServerSettings(model="some/folder")
    monkeypatch.setattr("labkit.generation.load_chat_model", fails)
    error = RuntimeError(said) if said else MemoryError()
    with pytest.raises(LabError, match="does not hold the model folder: ") as caught:
        process.load_model(settings)
    assert caught.value.what.endswith(said.partition("\n")[0] or "MemoryError")
    error = RuntimeError("shapes differ")
    with pytest.raises(RuntimeError, match="shapes differ"):
        process.load_model(settings)
