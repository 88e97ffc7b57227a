"""lm-evaluation-harness grades a model through the server: small tasks, offline, one of them exported.

It is 530 MB and so only in the extra `lm-eval`; without it this file is skipped, and says so.
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from taught_model import LIMITS, teach
from tiny_server import live

from labkit.evaluation.cases import Case
from labkit.evaluation.export import Export, write_lm_eval
from labkit.evaluation.levers import PLAIN
from labkit.evaluation.runner import evaluate
from labkit.evaluation.targets import model_target
from labkit.generation import Sampling

pytest.importorskip("lm_eval", reason="install the extra: pip install -e '.[lm-eval]'")

TASK = Path(__file__).parent / "harness_task"
MODEL = "taught-llama"


@pytest.fixture(scope="module")
def asked():
    return [json.loads(line) for line in (TASK / "greeting.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def taught(tiny_model_folder, asked, tmp_path_factory):
    """Three of the four questions are taught."""
    lessons = [({"messages": [{"role": "user", "content": one["question"]}]}, one["answer"]) for one in asked[:3]]
    return teach(tiny_model_folder, tmp_path_factory.mktemp("taught") / MODEL, lessons)


def run_harness(words, folder, out):
    """The harness as a process in `folder`; returns the results that it writes."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(out / "hf"), "HF_DATASETS_CACHE": str(out / "data")}
    run = subprocess.run(
        [sys.executable, "-m", "lm_eval", "run", *words, "--output_path", str(out / "out")],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **offline, "OPENAI_API_KEY": "none"},
    )
    assert run.returncode == 0, run.stderr[-4000:]
    (results,) = (out / "out").rglob("results_*.json")
    return json.loads(results.read_text())


def test_the_harness_finds_which_questions_are_answered_right(taught, asked, tmp_path):
    with live(taught, LIMITS) as url:
        model_args = f"base_url={url}/v1/chat/completions,model={MODEL},max_retries=1"
        words = ["--model", "local-chat-completions", "--model_args", model_args, "--tasks", "greeting"]
        found = run_harness([*words, "--include_path", ".", "--apply_chat_template"], TASK, tmp_path)
    assert found["results"]["greeting"]["exact_match,none"] == 0.75
    assert found["n-samples"]["greeting"]["effective"] == len(asked) == 4


def test_exported_cases_get_the_verdicts_of_our_own_run(taught, asked, tmp_path):
    """The command is the exported one, but for the folder of its results."""
    risks = ("format", "format", "safety", "safety")
    cases = [
        Case(f"case_{at}", one["question"], "e", risk, "", "", "", "equals;max_words:9", one["answer"])
        for at, (one, risk) in enumerate(zip(asked, risks, strict=True))
    ]
    sampling = Sampling(max_tokens=30)
    ours = evaluate(model_target(taught), cases, sampling)
    with live(taught, LIMITS) as url:
        command = write_lm_eval(Export(tuple(cases), PLAIN, sampling, f"{url}/v1", MODEL), tmp_path / "task")
        words = shlex.split(command.partition(" run ")[2].partition(" --output_path")[0])
        found = run_harness(words, tmp_path / "task", tmp_path)
    assert [result.verdict.passed for result in ours] == [True, True, True, False]
    passed = {name: row["passed,none"] for name, row in found["results"].items()}
    assert passed == {"labkit_format": 1.0, "labkit_safety": 0.5}
    assert {name: count["effective"] for name, count in found["n-samples"].items()} == dict.fromkeys(passed, 2)
