"""The main job: the notebooks of local_cpu, a pack that verify reads back, and an edit that it does not believe."""

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from labkit.evidence import read_csv, read_json, read_manifest
from labkit.layout import ROOT
from labkit.routes import load_route
from labkit.verification import Verdict, verify
from labkit.workbook import required_lessons

LESSONS = sorted(required_lessons(load_route("local_cpu")), key=lambda lesson: lesson.number)
LABKIT = str(Path(sys.executable).parent / "labkit")


def tree_memory(process: psutil.Process) -> int:
    """Resident bytes of a process and all below it, now."""
    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            total += member.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """`labkit run` as a learner starts it: (pack folder, what it printed, exit code, peak memory in bytes).

    The lessons that the route does not require, 13.6 and 13.7, are run by nbval.
    """
    folder = tmp_path_factory.mktemp("evidence") / "local_cpu"
    log = folder.parent / "log.txt"
    with open(log, "w", encoding="utf-8") as output:
        command = [LABKIT, "run", "--route", "local_cpu", "--required", "--evidence", str(folder)]
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "COLUMNS": "160"}
        )
    peak, watched = [0], psutil.Process(process.pid)

    def watch() -> None:
        while process.poll() is None:
            peak[0] = max(peak[0], tree_memory(watched))
            time.sleep(0.2)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        process.wait(timeout=1800)
    finally:
        process.kill()
    watcher.join()
    return folder, log.read_text(encoding="utf-8"), process.returncode, peak[0]


def test_one_command_leaves_a_pack_that_is_supported(finished):
    folder, printed, code, _ = finished
    assert code == 0, printed
    found = verify(folder)
    assert {f.verdict for f in found.artifacts if f.required} == {Verdict.SUPPORTED}
    assert {f.name for f in found.artifacts} >= set(load_route("local_cpu").required_artifacts)
    assert "report.html" in printed
    assert (folder / "report.html").stat().st_size > 10_000


def test_the_table_says_smoke_test_and_no_cuda_acceptance(finished):
    folder, printed, _, _ = finished
    claims = {claim.name: claim.verdict for claim in verify(folder).claims}
    assert claims["Training: smoke test"] is Verdict.SUPPORTED
    assert claims["Training: CUDA acceptance (GPU)"] is Verdict.NOT_YET
    assert "Training: smoke test" in printed


def test_it_needs_less_than_3_gb(finished):
    assert finished[3] < 3e9


def test_executed_notebooks_are_in_the_pack_and_name_no_machine(finished):
    folder, _, _, _ = finished
    assert {f"notebooks/{lesson.file}" for lesson in LESSONS} <= set(read_manifest(folder)["files"])
    private = [str(ROOT), str(Path.home()) + "/", str(folder.parent)]
    for path in folder.rglob("*"):
        if path.suffix in (".ipynb", ".md", ".json", ".csv", ".txt", ".html"):
            text = path.read_text(encoding="utf-8")
            assert not [name for name in private if name in text], path.name


def test_the_forecast_stands_beside_the_measured_time(finished):
    """What it says is not judged here: other tests take the processor, and a forecast holds for one load."""
    folder, printed, _, _ = finished
    rows = read_csv(folder / "forecast_and_measured.csv")
    ran = [row for row in rows if row["measured_minutes"]]
    assert [row["lesson"] for row in ran] == [lesson.number for lesson in LESSONS] + ["all that ran"]
    assert all(float(row["measured_minutes"]) > 0 < float(row["forecast_minutes"]) for row in ran)
    assert f"measured {rows[-1]['measured_minutes']}:" in printed
    assert read_json(folder / "forecast.json")["probe"]["seconds"]["LORA_STEP"] > 0


def test_no_server_is_left_running(finished):
    proof = read_json(finished[0] / "shutdown_proof.json")
    assert proof["process_gone"]
    assert proof["port_closed"]
    assert not psutil.pid_exists(proof["pid"])


def test_editing_the_device_is_a_named_contradiction(finished, tmp_path):
    edited = shutil.copytree(finished[0], tmp_path / "edited")
    log = edited / "openllm_gpu_training_run" / "training_log.csv"
    log.write_text(log.read_text(encoding="utf-8").replace(",cpu,", ",cuda,"), encoding="utf-8")
    done = subprocess.run(
        [LABKIT, "verify", str(edited)], capture_output=True, text=True, env={**os.environ, "COLUMNS": "300"}
    )
    assert done.returncode == 2
    assert "training_log.csv says cuda, environment_report.json and 1 more say cpu" in done.stdout


def test_lesson_13_1_is_supported(finished):
    found = verify(finished[0], lesson="13.1")
    assert [item.name for item in found.artifacts if item.verdict is not Verdict.SUPPORTED] == []


def test_the_same_lesson_twice_leaves_a_valid_pack(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "again")
    subprocess.run([LABKIT, "run", "--lesson", "13.1", "--evidence", str(folder)], check=True, capture_output=True)
    assert verify(folder).exit_code == 0
