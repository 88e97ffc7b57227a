"""The console script as a learner meets it: its outputs, its files, its exit codes, and never a traceback."""

import io
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch

from labkit.cli import main
from labkit.decisions import example_project, open_weight_route
from labkit.evidence import Pack, read_csv, read_json, read_manifest
from labkit.serving.ports import free_port
from labkit.verification import Verdict, verify

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


def here(capsys, *words: object, code: int = 0, stdin: str = "") -> tuple[str, str]:
    """The same command run in this process: imports are most of the time of a new one. What it printed on each stream.

    Each command that is run so is run by `labkit` somewhere too.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["labkit", *map(str, words)])
        patched.setattr(sys, "stdin", io.StringIO(stdin))
        patched.setenv("COLUMNS", "100")
        patched.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(SystemExit) as stopped:
            main()
    assert (stopped.value.code or 0) == code
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    return printed.out, printed.err


def refusal(capsys, *words: object) -> str:
    """What the command says to bad input."""
    printed = here(capsys, *words, code=2)[1]
    assert "next: " in printed
    return printed


def test_help_lists_the_commands():
    printed = labkit("--help")
    for command in ("env", "route", "train", "chat", "serve", "smoke", "eval", "stop", "decide", "release", "verify"):
        assert f"\n  {command}" in printed


def test_env_in_text_and_json(capsys):
    assert "Device reason: " in here(capsys, "env")[0]
    assert json.loads(labkit("env", "--json"))["device"] == "cpu"


def test_route_shows_one_or_three(capsys):
    assert labkit("route").count("Stop rule:") == 3
    printed = labkit("route", "local_cpu")
    assert "CUDA acceptance" in printed
    assert printed.count("Stop rule:") == 1
    assert "next: choose one of" in refusal(capsys, "route", "moon")


def test_train_writes_the_run_and_says_smoke_test(tmp_path):
    printed = labkit(*TRAINING, "--out", tmp_path)
    assert "smoke test: held-out loss" in printed
    assert "step 4 | train loss" in printed
    assert (tmp_path / "gpu_train_log.txt").exists()
    assert "openllm_gpu_training_run/training_log.csv" in read_manifest(tmp_path)["files"]
    assert read_manifest(tmp_path)["route"] == "local_cpu"


def test_train_on_a_device_that_is_absent_leaves_no_file(tmp_path, capsys):
    printed = refusal(capsys, "train", "--device", "cuda", "--out", tmp_path / "new")
    assert "the device cuda was asked for" in printed
    assert "next: use --device auto or cpu" in printed
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--steps", "1"), "1 steps are too few"),
        (("--batch-size", "0"), "'0' is no batch size"),
        (("--text", "nothing.txt"), "nothing.txt cannot be read"),
        (("--recipe", "nothing.yaml"), "nothing.yaml is not a recipe"),
        (("--recipe", "nothing.yaml", "--steps", "3"), "a recipe sets its text, sizes and steps itself"),
        (("--recipe", "nothing.yaml", "--size", "mini"), "a recipe sets its text, sizes and steps itself"),
        (("--precision", "fp16", "--device", "cpu"), "fp16 training needs a CUDA device"),
        (("--batch-size", "\u00b2"), "is no batch size"),
        (("--route", "moon"), "no route called 'moon'"),
    ],
)
def test_train_names_what_is_wrong_and_leaves_no_file(tmp_path, capsys, words, message):
    assert message in refusal(capsys, "train", "--out", tmp_path / "new", *words)
    assert not (tmp_path / "new").exists()


def test_chat_answers_and_keeps_the_first_run_without_a_folder_of_this_machine(tmp_path):
    question = "How many days does a customer have to return an item?"
    printed = labkit("chat", "--prompt", question, "--note", "POL-01", "--out", tmp_path / "pack")
    assert printed.strip() == "A customer may return an item within 30 days of delivery. [POL-01]"
    text = (tmp_path / "pack" / "first_run.md").read_text(encoding="utf-8")
    assert f"- Output: {printed.strip()}\n" in text
    assert "- Model: mini-instruct" in text
    assert "--note POL-01" in text
    assert str(tmp_path) not in text


def test_chat_reads_questions_line_by_line(capsys):
    printed, _ = here(capsys, "chat", "--max-tokens", "8", stdin="Hello\n\nMany thanks\n")
    assert len(printed.splitlines()) == 2


def test_chat_refuses_an_unknown_note_and_model(capsys):
    assert "no policy note 'POL-77'" in refusal(capsys, "chat", "--prompt", "x", "--note", "POL-77")
    assert "no model folder called nowhere" in refusal(capsys, "chat", "--prompt", "x", "--model", "./nowhere")


def test_eval_writes_results_and_prints_a_table_by_risk(tmp_path, capsys):
    printed, _ = here(capsys, "eval", "--out", tmp_path)
    for risk in ("format", "grounding", "safety", "performance", "regression"):
        assert risk in printed
    assert len(read_csv(tmp_path / "eval_results.csv")) == read_json(tmp_path / "eval_summary.json")["cases"]


def test_eval_names_a_bad_cell_and_refuses_two_targets(tmp_path, capsys):
    cases = tmp_path / "cases.csv"
    cases.write_text(
        "case_id,prompt,expected_behavior,risk,pass,notes,context_id,check,expected\na,p,e,luck,,,,refuses,\n",
        encoding="utf-8",
    )
    assert "cases.csv, row 2, column risk" in refusal(capsys, "eval", "--cases", cases, "--out", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert "--model cannot be given together with --base-url" in refusal(
        capsys, "eval", "--model", "mini-instruct", "--base-url", "http://127.0.0.1:9"
    )


def test_compare_wants_two_runs_that_are_there(tmp_path, capsys):
    assert "there is only one run to compare" in refusal(capsys, "compare", tmp_path)
    assert "there is no pack and no file none" in refusal(capsys, "compare", tmp_path / "none", tmp_path)
    assert " holds no eval_results.csv" in refusal(capsys, "compare", tmp_path, tmp_path)


def test_smoke_bench_stop_and_release_without_a_server(tmp_path, capsys):
    new = tmp_path / "new"
    for command in ("smoke", "bench"):
        assert "no server answers" in refusal(capsys, command, "--base-url", "http://127.0.0.1:9", "--out", new)
    assert "'1, many' is no list of numbers of clients" in refusal(
        capsys, "bench", "--concurrency", "1,many", "--out", new
    )
    assert "port 9" in refusal(capsys, "stop", "--port", "9", "--out", tmp_path / "other")
    assert "port 9" in refusal(capsys, "release", "--port", "9", "--evidence", new)
    assert not new.exists()


def test_a_service_from_start_to_proof_of_stop(tmp_path):
    """The commands of a learner without notebooks, and between them the chapter's own client, line for line."""
    pack, port = tmp_path / "pack", free_port()
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen([LABKIT, "serve", "--port", str(port)], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout.readline().startswith("backend onnx, int4: ")
            assert f"at {url}" in server.stdout.readline()
            with urllib.request.urlopen(f"{url}/health") as answer:
                assert json.load(answer)["status"] == "ok"
            body = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}).encode()
            request = urllib.request.Request(
                f"{url}/v1/chat/completions", data=body, headers={"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request) as answer:
                assert json.load(answer)["choices"][0]["message"]["content"]
            labkit("smoke", "--base-url", url, "--out", pack)
            labkit("eval", "--base-url", url, "--out", pack)
            bench = ("bench", "--base-url", url, "--requests", "2", "--max-tokens", "4", "--out", pack)
            assert "no throughput claim" in labkit(*bench, "--concurrency", "1", "--concurrency", "2")
            assert "a / b" in labkit(*bench, "--against", f"{url}/v1", "--rounds", "2")
            labkit("decide", "--evidence", pack)
            labkit("stop", "--port", port, "--out", pack)
            assert server.wait(20) == 0
        finally:
            server.kill()
    assert read_json(pack / "shutdown_proof.json")["port_closed"]
    assert [level["concurrency"] for level in read_json(pack / "benchmark.json")["levels"]] == [1, 2]
    assert len(read_json(pack / "benchmark_comparison.json")["levels"][0]["rounds"]) == 2
    assert {"benchmark_rows.csv", "benchmark.png"} <= set(read_manifest(pack)["files"])
    verdicts = {finding.name: finding.verdict for finding in verify(pack).artifacts}
    for name in ("api_smoke_test.json", "eval_summary.json", "benchmark.json", "shutdown_proof.json"):
        assert verdicts[name] is Verdict.SUPPORTED, name


def test_decide_writes_the_route_of_the_chapters_project(tmp_path):
    labkit("decide", "--route", "rented_gpu", "--evidence", tmp_path)
    assert read_json(tmp_path / "open_weight_route.json") == open_weight_route(example_project("rented_gpu"))


def test_verify_reads_a_half_made_pack_and_reports(tmp_path, capsys):
    here(capsys, *TRAINING, "--out", tmp_path)
    assert "not yet" in labkit("verify", tmp_path, code=1)
    found = json.loads(here(capsys, "verify", tmp_path, "--json", "--lesson", "13.2", code=1)[0])
    assert found["exit_code"] == 1
    assert "report.html" in labkit("report", tmp_path)
    assert "no pack in nothing" in refusal(capsys, "verify", tmp_path / "nothing")


def test_a_pack_of_another_route_is_refused(tmp_path, capsys):
    Pack(tmp_path, "local_cpu")
    assert "made on the route local_cpu" in refusal(capsys, "decide", "--route", "free_colab", "--evidence", tmp_path)


def test_memory_and_models_say_what_they_know(capsys):
    assert json.loads(labkit("memory", "Qwen/Qwen2.5-7B-Instruct", "--json"))["total_gib"] > 14
    assert "no model called" in refusal(capsys, "memory", "nobody/nothing")
    printed = labkit("models", "--family", "Qwen")
    assert "Qwen/Qwen2.5-0.5B-Instruct" in printed
    found = json.loads(here(capsys, "models", "--language", "ja", "--commercial", "--fits", "8", "--json")[0])
    assert {row["model"] for row in found} >= {"Qwen/Qwen2.5-0.5B-Instruct"}
    assert all(row["commercial_use"] in ("yes", "conditional") and row["facts"] for row in found)
    assert "prices.csv" in here(capsys, "models", "--stale")[0]
    assert "mean nothing for training" in refusal(capsys, "memory", "Qwen3-8B", "--mode", "lora", "--prompt", "9")
    short = json.loads(
        here(capsys, "memory", "Qwen3-8B", "--prompt", "1", "--cards", "2", "--quant", "awq", "--json")[0]
    )
    assert (short["quant"], short["cards"], short["activations_gb"] < 0.01) == ("AWQ", 2, True)
    assert "Apache License 2.0" in printed
    assert "no family called" in refusal(capsys, "models", "--family", "Moonstone")


def test_memory_of_training_by_the_command(capsys):
    shape = ("Llama-3.2-1B-Instruct", "--mode", "QLoRA", "--batch", "2", "--targets", "q_proj,v_proj", "--json")
    found = json.loads(labkit("memory", *shape))
    assert (found["mode"], found["quant"], found["batch"], found["targets"]) == (
        "qlora",
        "nf4-dq",
        2,
        ["q_proj", "v_proj"],
    )
    assert "Optimizer" in labkit("memory", "mini-instruct", "--mode", "full", "--checkpointing")
    assert "--r means nothing for inference" in refusal(capsys, "memory", "mini-instruct", "--r", "8")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("eval", "--base-url", ""), "'' is not an http or https URL"),
        (("smoke", "--base-url", "http://["), "'http://[' is not an http"),
        (("bench", "--base-url", ""), "'' is not an http"),
        (("conform", "--base-url", "http://host:99999"), "99999' is not an http"),
        (("chat", "--prompt", " "), "the prompt is empty"),
        (("serve", "--api-key-file", ""), "--api-key-file names no file"),
        (("release", "--port", "99999"), "99999 is not a port"),
        (("bench", "--requests", "0"), "next: give --requests and --max-tokens 1 or more"),
        (("rag", " "), "one of a question and --measure is needed"),
        (("quantize", "--held-out", "none.csv"), "there is no file none.csv"),
        (("memory", "Qwen3-8B", "--mode", "lora", "--r", "0"), "next: give --r as"),
        (("models", "--fits", "nan"), "fits is nan"),
        (("decide", "--project", "none.json"), "next: give a JSON file with the fields that lesson 13.3 prints"),
        (("tunnel", "user@host", "--remote-port", "0"), "next: give --remote-port"),
        (("export", "pack", "none"), "there is no pack in none"),
        (("report", "data"), "there is no pack in data"),
        (("check", "13.2", "--route", "moon"), "there is no route called 'moon'"),
    ],
)
def test_bad_input_is_told_with_its_remedy(capsys, words, said):
    assert said in refusal(capsys, *words)
