"""`labkit guard`: the limits and their clocks, real commands that are ended, and the proof of it."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import termios
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from healthy_pack import edit
from tiny_server import until
from typer.testing import CliRunner

from labkit.cli import app
from labkit.errors import LabError
from labkit.evidence import Pack, read_json
from labkit.guard import start
from labkit.guard.limits import SpendingLimits, parse_stop_at
from labkit.guard.meter import Meter
from labkit.guard.watch import UNDER_GUARD, Task
from labkit.serving.ports import free_port
from labkit.verification import Verdict, verify
from labkit.verification.release_checks import GUARD_SECONDS
from labkit.workbook.rented import rented_task

NOON = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)
PROOF = "shutdown_proof.json"

# Ignores SIGTERM, listens, leaves a daemon in a session of its own, and counts tenths of a second for ever.
RUNAWAY = """
import os, signal, socket, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
daemon = (
    "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print(os.getpid(), flush=True); time.sleep(900)"
)
subprocess.Popen(["setsid", "--fork", sys.executable, "-c", daemon], stdout=open(sys.argv[2], "w"))
while True:
    open(sys.argv[3], "a").write("x")
    time.sleep(0.1)
"""


def guard(folder: Path, *words: object, **how) -> subprocess.Popen:
    command = [sys.executable, "-m", "labkit.cli", "guard", "--out", folder, *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(list(map(str, command)), **pipes | how)


def finished(process: subprocess.Popen) -> tuple[int, str]:
    said, _ = process.communicate(timeout=120)
    return process.returncode, said


def finding(folder: Path, name: str = PROOF):
    return next(found for found in verify(folder).artifacts if found.name == name)


# Limits and clocks


def test_a_time_of_the_day_is_the_next_one_and_a_moment_is_itself():
    here = NOON.astimezone()
    for minutes, days in ((5, 0), (-5, 1)):
        asked = here + timedelta(minutes=minutes)
        assert parse_stop_at(f"{asked:%H:%M}", NOON) == asked.astimezone(UTC) + timedelta(days=days)
    assert parse_stop_at("2026-11-27T18:30+01:00", NOON) == datetime(2026, 11, 27, 17, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("25:00", "'25:00' is not a time"),
        ("noon", "not a time"),
        ("2026-11-27T11:00Z", "has passed"),
        ("9999-12-31T23:59-23:00", "not a time"),
    ],
)
def test_what_is_no_time_to_come_is_refused(text, said):
    with pytest.raises(LabError, match=said):
        parse_stop_at(text, NOON)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "no limit to guard"),
        ({"budget_usd": 3}, "limits nothing without a price"),
        ({"hourly_usd": float("nan"), "budget_usd": 3}, "nan is not an amount"),
        ({"hourly_usd": 1, "budget_usd": -3}, "-3 is not an amount"),
    ],
)
def test_limits_that_limit_nothing_are_refused(values, said):
    with pytest.raises(LabError, match=said):
        SpendingLimits(**values)


def test_the_budget_is_counted_by_the_steady_clock_alone():
    meter = Meter(SpendingLimits(0.79, 3.0), 100.0, NOON.timestamp())
    for change in (0, 7200, -7200):
        reading = meter.read(100.0 + 3600, NOON.timestamp() + 3600 + change)
        assert (reading.seconds, reading.limit, reading.clock_change) == (3600, "budget", change)
        assert reading.left == pytest.approx(3.0 / 0.79 * 3600 - 3600)
    assert meter.cost(3600) == pytest.approx(0.79)
    assert meter.says(reading) == "1:00:00 used, $0.79 of $3.00; the budget stops it in 2:47:50"


def test_a_clock_that_is_set_back_does_not_give_more_time_and_one_set_forward_takes_it():
    meter = Meter(SpendingLimits(stop_at=NOON + timedelta(hours=1)), 0.0, NOON.timestamp())
    assert meter.read(600, NOON.timestamp() + 600).left == 3000
    assert meter.read(600, NOON.timestamp() + 600 - 7200).left == 3000
    assert meter.read(600, NOON.timestamp() + 600 + 1800).left == 1200
    assert meter.read(600, NOON.timestamp() + 601).clock_change == 0  # a correction as NTP makes them
    assert meter.read(2880, NOON.timestamp() + 2880).share == pytest.approx(0.8)


def test_a_long_grace_begins_before_the_limit(tmp_path):
    task = Task(("true",), SpendingLimits(1, 1), tmp_path, "rented_gpu", grace=30)
    assert (task.signal_before, Task(("true",), task.limits, tmp_path, "rented_gpu").signal_before) == (26, 0)


# Real commands


def run_away(folder: Path) -> tuple[int, str]:
    """A runaway with two seconds of money, and an nvidia-smi that shows 900 MiB while the runaway's daemon lives."""
    (folder / "runaway.py").write_text(RUNAWAY)
    (folder / "daemon").write_text("1\n")
    smi = folder / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\nfor p in $(cat {folder}/daemon); do test -d /proc/$p && echo 900 || echo 40; done\n")
    smi.chmod(0o755)
    words = ("--hourly", 3600, "--budget", 2, "--every", 1, "--stop-hook", "echo given back")
    files = (free_port(), folder / "daemon", folder / "ticks")
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    command = ("--", sys.executable, folder / "runaway.py", *files)
    return finished(guard(folder / "pack", *words, *command, env=environment))


@pytest.fixture(scope="module")
def runaway(tmp_path_factory):
    """Exit code, what was shown, and the folder. Another try where the machine itself stood still for seconds."""
    for _ in range(3):
        folder = tmp_path_factory.mktemp("runaway")
        code, said = run_away(folder)
        if read_json(folder / "pack" / PROOF)["guard"]["seconds_after_limit"] < GUARD_SECONDS:
            break
    return code, said, folder


def test_a_runaway_is_gone_within_five_seconds_of_its_limit(runaway):
    code, said, folder = runaway
    assert code == 124, said
    assert read_json(folder / "pack" / PROOF)["guard"]["seconds_after_limit"] < GUARD_SECONDS
    assert 0 < (folder / "ticks").stat().st_size < 70, "its own count of tenths of a second"
    assert not psutil.pid_exists(int((folder / "daemon").read_text()))


def test_what_the_guard_shows(runaway):
    _, said, _ = runaway
    assert re.search(r"guard: \d:\d\d:\d\d used, \$\d\.\d\d of \$2\.00; the budget stops it in 0:00:0", said)
    assert said.index("WARNING: 80% is used") < said.index("budget: stopping") < said.index("given back")
    assert "every process gone, its ports closed" in said


def test_the_proof_of_the_runaway_verifies(runaway):
    _, _, folder = runaway
    proof = read_json(folder / "pack" / PROOF)
    assert (proof["signal"], proof["process_gone"], proof["port_closed"]) == ("SIGKILL", True, True)
    assert proof["hook"]["exit"] == 0
    assert proof["gpu_memory"] == "860 MiB freed"
    assert proof["guard"]["ended_because"] == "budget"
    assert proof["guard"]["warned_after_seconds"] >= 1.6
    assert proof["cost_usd"] == pytest.approx(proof["seconds"], abs=0.01)  # a dollar a second
    found = finding(folder / "pack")
    assert found.verdict is Verdict.SUPPORTED, found.detail
    assert "ended by: budget, limit 2 s" in found.detail


@pytest.mark.parametrize(
    ("old", "new", "verdict", "said"),
    [
        ('"limit_seconds": 2.0', '"limit_seconds": 0.0', Verdict.NOT_YET, "s past its limit"),
        ('"budget_usd": 2.0', '"budget_usd": 0.0', Verdict.CONTRADICTED, "there was none"),
        ('"hourly_usd": 3600.0', '"hourly_usd": 36.0', Verdict.CONTRADICTED, "at $36.00 an hour are"),
        ('"exit": 0', '"exit": 1', Verdict.NOT_YET, "may still cost money"),
        ('"process_gone": true', '"process_gone": false', Verdict.NOT_YET, "still there"),
    ],
)
def test_a_proof_that_is_none_is_told(runaway, tmp_path, old, new, verdict, said):
    pack = Pack(tmp_path, "local_cpu")
    pack.write_text(PROOF, (runaway[2] / "pack" / PROOF).read_text(), "13.4")
    edit(tmp_path, PROOF, old, new)
    assert (finding(tmp_path).verdict, said in finding(tmp_path).detail) == (verdict, True), finding(tmp_path).detail


def test_the_command_keeps_its_exit_code_and_a_failed_hook_is_a_failure(tmp_path):
    words = ("--hourly", 1, "--budget", 1, "--stop-hook", "exit 9", "--")
    code, said = finished(guard(tmp_path / "a", *words, "sh", "-c", "echo once; exit 3"))
    assert (code, "\nonce\n" in said) == (3, True), said
    code, said = finished(guard(tmp_path / "b", *words, "true"))
    assert (code, "THE STOP HOOK FAILED (9)" in said) == (1, True), said
    proof = read_json(tmp_path / "b" / PROOF)
    assert (proof["port"], proof["signal"], proof["hook"]["exit"]) == ("none seen", "none: it ended by itself", 9)
    assert finding(tmp_path / "b").verdict is Verdict.NOT_YET


def test_a_hook_that_hangs_is_ended_with_all_that_it_started(tmp_path):
    hook = f"sleep 900 & echo $! > {tmp_path}/left; wait"
    limits = ("--hourly", 1, "--budget", 1, "--hook-seconds", 1)
    code, said = finished(guard(tmp_path / "pack", *limits, "--stop-hook", hook, "--", "true"))
    assert (code, "THE STOP HOOK FAILED (stopped after 1 s)" in said) == (1, True), said
    until(lambda: not alive(int((tmp_path / "left").read_text())))


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_proof_that_cannot_be_written_stops_no_hook(tmp_path):
    """The pack is gone at the end, and a file in its place: the hook, which ends the bill, runs all the same."""
    pack = tmp_path / "pack"
    command = f"rm -r {pack}; touch {pack}"
    words = ("--hourly", 1, "--budget", 1, "--stop-hook", "echo given back", "--")
    code, said = finished(guard(pack, *words, "sh", "-c", command))
    assert (code, "\ngiven back\n" in said) == (1, True), said
    assert "THE PROOF COULD NOT BE WRITTEN INTO THE PACK" in said
    assert '"ended_because": "the command ended"' in said


@pytest.mark.parametrize(
    ("how", "said"),
    [({"grace": float("inf")}, "no time to wait"), ({"every": float("nan")}, "no time"), ({"ports": (99999,)}, "port")],
)
def test_a_task_that_cannot_be_watched_is_refused(tmp_path, how, said):
    with pytest.raises(LabError, match=said):
        Task(("true",), SpendingLimits(1, 1), tmp_path, "rented_gpu", **how)


def test_ctrl_c_stops_the_command_in_order(tmp_path):
    ready = tmp_path / "ready"
    command = f"trap 'echo tidied up; exit 0' TERM; touch {ready}; while :; do sleep 0.1; done"
    process = guard(tmp_path / "pack", "--stop-at", "2099-01-01T00:00Z", "--", "sh", "-c", command)
    until(ready.exists, 60)
    process.send_signal(signal.SIGINT)
    code, said = finished(process)
    assert (code, "tidied up" in said) == (130, True), said
    assert read_json(tmp_path / "pack" / PROOF)["signal"] == "SIGTERM"


def test_it_outlives_its_terminal(tmp_path):
    """The view has a terminal of its own, which is closed: the kernel sends SIGHUP, and the limit still holds."""
    master, slave = os.openpty()
    pids, ready = tmp_path / "pids", tmp_path / "ready"
    command = f"echo $$ > {pids}; touch {ready}; while :; do sleep 0.1; echo alive; done"
    terminal = {"stdin": slave, "stdout": slave, "stderr": slave, "start_new_session": True}
    terminal["preexec_fn"] = lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    process = guard(tmp_path / "pack", "--hourly", 3600, "--budget", 3, "--", "sh", "-c", command, **terminal)
    os.close(slave)
    until(ready.exists, 60)
    os.close(master)
    assert process.wait(60) != 124  # the view is gone
    assert psutil.pid_exists(int(pids.read_text()))
    until((tmp_path / "pack" / PROOF).exists, 60)
    assert not psutil.pid_exists(int(pids.read_text()))
    assert read_json(tmp_path / "pack" / PROOF)["guard"]["ended_because"] == "budget"


CLOCK = """
import sys, time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from labkit.guard.limits import SpendingLimits
from labkit.guard.watch import Task, watch
real, began = time.time, time.time()
time.time = lambda: real() + ({change} if real() - began > 0.5 else 0)
limits = SpendingLimits(3600, 2, datetime.now(UTC) + timedelta(hours=1))
sys.exit(watch(Task(("sleep", "900"), limits, Path({folder!r}), "rented_gpu"), open(1, "wb", buffering=0)))
"""


@pytest.mark.parametrize(("change", "because"), [(-90_000, "budget"), (90_000, "stop time")])
def test_a_clock_that_is_set_is_told_and_never_makes_a_run_longer(tmp_path, change, because):
    code = CLOCK.format(change=change, folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 124, done.stderr
    assert f"clock was set and is now {change:+} s from where it was going" in done.stdout
    proof = read_json(tmp_path / PROOF)
    assert (proof["guard"]["ended_because"], round(proof["guard"]["clock_change_seconds"])) == (because, change)
    assert 0 < proof["guard"]["limit_seconds"] <= 2


def test_a_command_that_is_not_there_and_none_are_told(tmp_path):
    code, said = finished(guard(tmp_path, "--stop-at", "2099-01-01T00:00Z", "--", "no-such-program"))
    assert (code, "error: the command no-such-program cannot be started" in said) == (2, True), said
    assert "Traceback" not in said
    with pytest.raises(LabError, match="no command to guard"):
        Task((), SpendingLimits(1, 1), tmp_path, "rented_gpu")


# The route rented_gpu


def write_plan(folder: Path, **changes: str) -> None:
    stop = (datetime.now(UTC) + timedelta(hours=2)).isoformat(timespec="minutes")
    fields = {"Hourly price": "$0.79", "Budget": "$3.00, which pays for 3.8 hours", "Stop time": stop, **changes}
    Pack(folder, "rented_gpu").write_text("gpu_plan.md", "".join(f"- {k}: {v}\n" for k, v in fields.items()), "13.1")


def test_the_plan_of_the_pack_limits_the_run(tmp_path):
    write_plan(tmp_path)
    task = rented_task(tmp_path, "13.2", "echo stop")
    assert (task.limits.hourly_usd, task.limits.budget_usd, task.proof) == (0.79, 3.0, "guard_proof.json")
    assert timedelta(hours=1) < task.limits.stop_at - datetime.now(UTC) <= timedelta(hours=2)
    assert list(task.argv[1:]) == (
        ["-m", "labkit.cli", "run", "--route", "rented_gpu", "--evidence", str(tmp_path), "--lesson", "13.2"]
    )
    assert start._from_json(json.loads(json.dumps(start._as_json(task)))) == task


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"Budget": "_____"}, "not filled: Budget"),
        ({"Stop time": "2026-01-05T10:00+00:00"}, "has passed"),
        ({"Stop time": "at six"}, "'at six' is not a date and time"),
        ({"Hourly price": "cheap"}, "hourly price is no amount"),
        ({"Budget": "$0.00"}, "budget is no amount"),
    ],
)
def test_a_plan_that_limits_nothing_does_not_start(tmp_path, changes, said):
    write_plan(tmp_path, **changes)
    with pytest.raises(LabError, match=said):
        rented_task(tmp_path)


def test_without_a_plan_only_the_lesson_that_writes_it_starts(tmp_path):
    with pytest.raises(LabError, match=r"not started without its plan: gpu_plan.md is missing"):
        rented_task(tmp_path)
    with pytest.raises(LabError, match=r"gpu_plan.md is missing"):
        rented_task(tmp_path, "13.2")
    limits = rented_task(tmp_path, "13.1").limits
    assert (limits.budget_usd, limits.stop_at > datetime.now(UTC)) == (3.0, True)


def test_labkit_run_on_that_route_goes_through_the_guard(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(start, "guarded", lambda task: asked.append(task) or 124)
    write_plan(tmp_path)
    words = ["run", "--route", "rented_gpu", "--evidence", str(tmp_path), "--lesson", "13.5"]
    monkeypatch.delenv(UNDER_GUARD, raising=False)
    assert CliRunner().invoke(app, words).exit_code == 124
    assert asked[0].argv[-1] == "13.5"
    (tmp_path / "gpu_plan.md").unlink()
    refused = CliRunner().invoke(app, words).exception
    assert isinstance(refused, LabError)
    assert len(asked) == 1
    refused = CliRunner().invoke(app, ["run", "--route", "local_cpu", "--stop-hook", "true"]).exception
    assert "--stop-hook is for the route rented_gpu" in str(refused)
