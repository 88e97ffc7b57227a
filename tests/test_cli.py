"""The console script as a learner meets it: its outputs, its files, its exit codes, and never a traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.decisions import example_project, open_weight_route
from labkit.evidence import read_csv, read_json, read_manifest

LABKIT = str(Path(sys.executable).parent / "labkit")
TRAINING = ("train", "--steps", "4", "--batch-size", "2", "--device", "cpu")


def labkit(*words: object, code: int = 0, stdin: str = "") -> str:
    """Run the real script; returns what it printed on both streams."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "100"}
    done = subprocess.run(
        [LABKIT, *map(str, words)], input=stdin, capture_output=True, text=True, timeout=240, env=environment
    )
    printed = done.stdout + done.stderr
    assert done.returncode == code, printed
    assert "Traceback" not in printed
    return printed


def test_help_lists_the_commands():
    printed = labkit("--help")
    for command in ("env", "route", "train", "chat", "serve", "smoke", "eval", "stop", "decide", "release", "verify"):
        assert f"\n  {command}" in printed


def test_env_in_text_and_json():
    assert "Device reason: " in labkit("env")
    assert json.loads(labkit("env", "--json"))["device"] == "cpu"


def test_route_shows_one_or_three():
    assert labkit("route").count("Stop rule:") == 3
    printed = labkit("route", "local_cpu")
    assert "CUDA acceptance" in printed
    assert printed.count("Stop rule:") == 1
    assert "next: choose one of" in labkit("route", "moon", code=2)


def test_train_writes_the_run_and_says_smoke_test(tmp_path):
    printed = labkit(*TRAINING, "--out", tmp_path)
    assert "smoke test: held-out loss" in printed
    assert "step 4 | train loss" in printed
    assert (tmp_path / "gpu_train_log.txt").exists()
    assert "openllm_gpu_training_run/training_log.csv" in read_manifest(tmp_path)["files"]
    assert read_manifest(tmp_path)["route"] == "local_cpu"


def test_train_on_a_device_that_is_absent_leaves_no_file(tmp_path):
    printed = labkit("train", "--device", "cuda", "--out", tmp_path / "new", code=2)
    assert "the device cuda was asked for" in printed
    assert "next: use --device auto or cpu" in printed
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--steps", "1"), "1 steps are too few"),
        (("--batch-size", "0"), "a batch of 0 windows"),
        (("--text", "nothing.txt"), "nothing.txt cannot be read"),
        (("--recipe", "nothing.yaml"), "nothing.yaml is not a recipe"),
        (("--route", "moon"), "no route called 'moon'"),
    ],
)
def test_train_names_what_is_wrong_and_leaves_no_file(tmp_path, words, message):
    assert message in labkit("train", "--out", tmp_path / "new", *words, code=2)
    assert not (tmp_path / "new").exists()


def test_chat_answers_and_keeps_the_first_run(tmp_path):
    printed = labkit("chat", "--prompt", "By when must an item be returned?", "--note", "POL-01", "--out", tmp_path)
    text = (tmp_path / "first_run.md").read_text(encoding="utf-8")
    assert f"- Output: {printed.strip()}\n" in text
    assert "- Model: mini-instruct" in text
    assert "--note POL-01" in text


def test_chat_reads_questions_line_by_line():
    assert len(labkit("chat", "--max-tokens", "8", stdin="Hello\n\nMany thanks\n").splitlines()) == 2


def test_chat_refuses_an_unknown_note_and_model():
    assert "no policy note 'POL-77'" in labkit("chat", "--prompt", "x", "--note", "POL-77", code=2)
    assert "no model folder called nowhere" in labkit("chat", "--prompt", "x", "--model", "./nowhere", code=2)


def test_eval_writes_results_and_prints_a_table_by_risk(tmp_path):
    printed = labkit("eval", "--out", tmp_path)
    for risk in ("format", "grounding", "safety", "performance", "regression"):
        assert risk in printed
    assert len(read_csv(tmp_path / "eval_results.csv")) == read_json(tmp_path / "eval_summary.json")["cases"]


def test_eval_names_a_bad_cell_and_refuses_two_targets(tmp_path):
    cases = tmp_path / "cases.csv"
    cases.write_text(
        "case_id,prompt,expected_behavior,risk,pass,notes,context_id,check,expected\na,p,e,luck,,,,refuses,\n",
        encoding="utf-8",
    )
    assert "cases.csv, row 2, column risk" in labkit("eval", "--cases", cases, "--out", tmp_path / "new", code=2)
    assert not (tmp_path / "new").exists()
    assert "both given" in labkit("eval", "--model", "mini-instruct", "--base-url", "http://127.0.0.1:9", code=2)


def test_smoke_bench_and_stop_without_a_server(tmp_path):
    for command in ("smoke", "bench"):
        printed = labkit(command, "--base-url", "http://127.0.0.1:9", "--out", tmp_path / "new", code=2)
        assert "next: " in printed
    assert "next: " in labkit("stop", "--port", "9", "--out", tmp_path / "new", code=2)
    assert not (tmp_path / "new").exists()


def test_decide_writes_the_route_of_the_chapters_project(tmp_path):
    labkit("decide", "--route", "rented_gpu", "--evidence", tmp_path)
    assert read_json(tmp_path / "open_weight_route.json") == open_weight_route(example_project("rented_gpu"))


def test_verify_reads_a_half_made_pack_and_reports(tmp_path):
    labkit(*TRAINING, "--out", tmp_path)
    assert "not yet" in labkit("verify", tmp_path, code=1)
    found = json.loads(labkit("verify", tmp_path, "--json", "--lesson", "13.2", code=1))
    assert found["exit_code"] == 1
    assert "report.html" in labkit("report", tmp_path)
    assert "next: " in labkit("verify", tmp_path / "nothing", code=2)


def test_a_pack_of_another_route_is_refused(tmp_path):
    labkit("decide", "--route", "local_cpu", "--evidence", tmp_path)
    assert "made on the route local_cpu" in labkit("decide", "--route", "free_colab", "--evidence", tmp_path, code=2)


def test_memory_and_models_say_what_they_know():
    assert json.loads(labkit("memory", "Qwen/Qwen2.5-7B-Instruct", "--json"))["total_gib"] > 14
    assert "no model called" in labkit("memory", "nobody/nothing", code=2)
    printed = labkit("models", "--family", "Qwen")
    assert "Qwen/Qwen2.5-0.5B-Instruct" in printed
    assert "Apache License 2.0" in printed
    assert "no family called" in labkit("models", "--family", "Moon", code=2)


def test_release_needs_a_running_server(tmp_path):
    assert "next: " in labkit("release", "--port", "9", "--evidence", tmp_path / "new", code=2)
    assert not (tmp_path / "new").exists()
