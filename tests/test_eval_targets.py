"""What a target is asked and tells: schemas, the first token's time, several cases at once, servers of other makes."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tiny_server import SMALL, live

from labkit.adaptation.prompts import find_prompt
from labkit.errors import LabError
from labkit.evaluation.cases import load_cases
from labkit.evaluation.levers import Asked, Levers, plainly
from labkit.evaluation.records import summarise, write_evaluation
from labkit.evaluation.runner import evaluate
from labkit.evaluation.targets import endpoint_target, model_target
from labkit.evidence import Pack, read_csv
from labkit.generation import Chat, Completion, Sampling, chat_together
from labkit.layout import DATA, ROOT

HELLO = ({"role": "user", "content": "Hello"},)
CHOICE = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}},
    "required": ["colour"],
    "additionalProperties": False,
}


class Elsewhere(BaseHTTPRequestHandler):
    """A server of another make. It answers whole, as `reply` says, streams without usage, or refuses to stream."""

    refuses = False
    reply = "whole"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        if not body.get("stream"):
            message = {"role": "assistant", "content": self.reply}
            usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            self._send(200, "application/json", json.dumps({**HEAD, "choices": [choice], "usage": usage}))
        elif self.refuses:
            self._send(400, "application/json", json.dumps({"error": {"message": "no streams here"}}))
        else:
            chunk = {**HEAD, "choices": [{"index": 0, "delta": {"content": "streamed"}, "finish_reason": "stop"}]}
            self._send(200, "text/event-stream", f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n")

    def _send(self, status, kind, text):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


HEAD = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}


@contextlib.contextmanager
def elsewhere(**ways):
    handler = type("Handler", (Elsewhere,), ways)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server, f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


# Schemas


def test_an_answer_is_kept_to_a_schema_here_and_behind_a_server(tiny_model):
    greedy = Sampling(max_tokens=30)
    here = model_target(tiny_model)
    assert json.loads(here.ask(Asked(HELLO, CHOICE), greedy).text)["colour"] in ("red", "green")
    assert not here.ask(Asked(HELLO), greedy).text.startswith("{")
    with live(tiny_model) as base_url:
        assert json.loads(endpoint_target(base_url).ask(Asked(HELLO, CHOICE), greedy).text)["colour"] in (
            "red",
            "green",
        )


def test_no_constrained_answer_fails_as_a_form(embedded, tmp_path):
    """The return label is a form that the model was never taught: its plain answers are none."""
    taught = [case for case in load_cases() if case.form][:2]
    label = next(case for case in load_cases(DATA / "label_cases.csv"))
    asked = [*taught, replace(label, check="json_schema:return_label")]
    target, sampling = model_target(embedded), Sampling(max_tokens=96)
    plain = evaluate(target, asked, sampling, concurrency=3)
    assert [result.verdict.kind for result in plain if not result.verdict.passed] == ["json_schema"]
    kept = evaluate(target, asked, sampling, levers=Levers(constrained=True), concurrency=3)
    assert not [
        result.reply.text for result in kept if result.verdict.kind == "json_schema" and not result.verdict.passed
    ]
    summary = write_evaluation(Pack(tmp_path, "local_cpu"), kept, target, sampling, levers=Levers(constrained=True))
    assert summary["speed"]["forms"]["tokens_per_second"] > 0
    assert summary["speed"]["forms"] == summary["speed"]["all"]
    assert {row["levers"] for row in read_csv(tmp_path / "eval_results.csv")} == {"schema"}


# The first token


def test_the_first_token_has_its_time_here_and_behind_a_server(tiny_model):
    long = Sampling(max_tokens=30)
    with live(tiny_model) as base_url:
        for target in (model_target(tiny_model), endpoint_target(base_url)):
            reply = target.ask(plainly("Hello"), long)
            assert 0 < reply.ttft_ms < reply.latency_ms
            assert (reply.prompt_tokens, reply.completion_tokens) == (len(tiny_model.prompt_ids(HELLO)), 30)


@pytest.mark.parametrize("refuses", [False, True])
def test_a_server_without_usage_in_streams_is_asked_for_whole_answers(refuses):
    with elsewhere(refuses=refuses) as (server, base_url):
        target = endpoint_target(base_url, model="m")
        replies = [target.ask(plainly("Hello"), Sampling(max_tokens=4)) for _ in range(2)]
    assert [(reply.text, reply.completion_tokens, reply.ttft_ms) for reply in replies] == [("whole", 1, None)] * 2
    assert [bool(body.get("stream")) for body in server.asked] == [True, False, False]
    assert server.asked[0]["stream_options"] == {"include_usage": True}


def test_a_case_that_is_refused_says_nothing_of_streams(tiny_model):
    with live(tiny_model) as base_url:
        target = endpoint_target(base_url)
        with pytest.raises(LabError, match="400"):
            target.ask(plainly("hello " * 200), Sampling(max_tokens=4))
        assert target.ask(plainly("Hello"), Sampling(max_tokens=4)).ttft_ms is not None


def test_a_stream_that_breaks_off_is_a_case_without_an_answer():
    def broken(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", "9999")
        self.end_headers()
        self.wfile.write(b"data: ")
        self.close_connection = True

    with elsewhere(do_POST=broken) as (_, base_url):
        target = endpoint_target(base_url, model="m")
        with pytest.raises(LabError, match=r"refused a case: (Connection error|peer closed connection)"):
            target.ask(plainly("Hello"), Sampling(max_tokens=4))


# Several cases at once in this process


def test_cases_decoded_together_are_answered_as_alone(tiny_model):
    """Prompts of unequal length, more of them than rows, each with a seed of its own, one without room."""
    asked = [Chat([{"role": "user", "content": "Hi " * n}], Sampling(6 + n % 3, 1.0, seed=n)) for n in range(1, 8)]
    asked[3] = Chat([{"role": "user", "content": "long " * 4000}], Sampling(4))
    ended = dict(chat_together(tiny_model, asked, 3))
    assert sorted(ended) == list(range(7))
    assert isinstance(ended.pop(3), LabError)
    for number, completion in ended.items():
        assert isinstance(completion, Completion)
        assert completion.text == tiny_model.chat(asked[number].messages, asked[number].sampling).text


def test_a_run_together_has_the_results_of_a_run_alone(tiny_model):
    cases = [replace(case, context_id="", check="max_words:9") for case in load_cases()[:9]]
    cases[4] = replace(cases[4], prompt="long " * 4000)
    target, sampling = model_target(tiny_model), Sampling(max_tokens=5)
    seen = []
    together = evaluate(target, cases, sampling, seen.append, concurrency=target.concurrency, repeats=2)
    alone = evaluate(target, cases, sampling, repeats=2)
    outputs = [[(r.case.case_id, r.repeat, r.reply.text, r.verdict) for r in results] for results in (together, alone)]
    assert outputs[0] == outputs[1]
    assert [result.answered for result in together].count(False) == 2
    assert len(seen) == 18


# Records


def test_the_summary_names_levers_settings_and_speed(tiny_model):
    cases = [replace(case, context_id="") for case in load_cases()[:3]]
    target, levers = model_target(tiny_model), Levers(prompt=find_prompt("desk"))
    found = evaluate(target, cases, Sampling(max_tokens=5), levers=levers)
    summary = summarise(found, target, Sampling(max_tokens=5), "local_cpu", levers)
    assert summary["settings"] == {"max_tokens": 5, "temperature": 0.0, "top_p": 1.0, "seed": 0, "concurrency": 1}
    assert summary["levers"] == {"prompt": {"name": "desk", "version": "1"}}
    assert summary["speed"]["all"]["completion_tokens"] == 15
    seconds = sum(result.reply.latency_ms for result in found) / 1000
    assert summary["speed"]["all"]["tokens_per_second"] == pytest.approx(15 / seconds, rel=0.01)
    assert "judge" not in summary


def test_limits_hold_for_schemas_too(tiny_model):
    """A server's refusal of a schema is a case without an answer, never an answer without its form."""
    wide = {"allOf": [{"type": "object"}] * 9}
    with live(tiny_model, SMALL) as base_url, pytest.raises(LabError, match="allOf"):
        endpoint_target(base_url).ask(Asked(HELLO, wide), Sampling(max_tokens=4))
    with pytest.raises(LabError, match="allOf"):
        model_target(tiny_model).ask(Asked(HELLO, wide), Sampling(max_tokens=4))


def test_a_server_is_evaluated_without_torch(tmp_path):
    case = {"case_id": "a", "prompt": "hello", "expected_behavior": "talks", "risk": "safety", "check": "min_words:1"}
    (tmp_path / "cases.jsonl").write_text(json.dumps(case) + "\n")
    words = ["labkit", "eval", "--cases", "cases.jsonl", "--out", "pack", "--adapter", "m"]
    code = (
        "import sys\nfrom labkit.cli import app\n"
        "try:\n    app()\nfinally:\n    print(*sorted({'torch', 'transformers'} & set(sys.modules)), file=sys.stderr)"
    )
    known = {**os.environ, "PYTHONPATH": str(ROOT)}
    with elsewhere() as (_, url):
        done = subprocess.run(
            [sys.executable, "-c", f"import sys\nsys.argv = {[*words, '--base-url', url]}\n{code}"],
            **{"cwd": tmp_path, "env": known, "capture_output": True, "text": True, "timeout": 120},
        )
    assert (done.returncode, done.stderr.split("\n")[-2]) == (0, ""), done.stderr
    assert [row["output"] for row in read_csv(tmp_path / "pack" / "eval_results.csv")] == ["whole"]
