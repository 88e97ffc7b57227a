"""lm-evaluation-harness grades a model through the server: one small task, offline.

It is 530 MB and so only in the extra `lm-eval`; without it this file is skipped, and says so.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from taught_model import LIMITS, teach
from tiny_server import live

pytest.importorskip("lm_eval", reason="install the extra: pip install -e '.[lm-eval]'")

TASK = Path(__file__).parent / "harness_task"
MODEL = "taught-llama"


def test_the_harness_finds_which_questions_are_answered_right(tiny_model_folder, tmp_path):
    """Three of the four are taught."""
    asked = [json.loads(line) for line in (TASK / "greeting.jsonl").read_text().splitlines()]
    lessons = [({"messages": [{"role": "user", "content": one["question"]}]}, one["answer"]) for one in asked[:3]]
    model = teach(tiny_model_folder, tmp_path / MODEL, lessons)
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "HF_DATASETS_CACHE": str(tmp_path / "data")}
    with live(model, LIMITS) as url:
        model_args = f"base_url={url}/v1/chat/completions,model={MODEL},max_retries=1"
        words = ["--model", "local-chat-completions", "--model_args", model_args, "--tasks", "greeting"]
        more = ["--include_path", ".", "--apply_chat_template", "--output_path", str(tmp_path / "out")]
        run = subprocess.run(
            [sys.executable, "-m", "lm_eval", "run", *words, *more],
            capture_output=True,
            text=True,
            cwd=TASK,
            env={**os.environ, **offline, "OPENAI_API_KEY": "none"},
        )
    assert run.returncode == 0, run.stderr[-4000:]
    (results,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(results.read_text())
    assert found["results"]["greeting"]["exact_match,none"] == 0.75
    assert found["n-samples"]["greeting"]["effective"] == len(asked) == 4
