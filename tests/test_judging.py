"""A second judge: its grade stands beside the verdict, and what cannot be read is no grade."""

import json

import pytest
import yaml
from test_eval_targets import elsewhere
from tiny_server import SMALL, live
from typer.testing import CliRunner

from labkit.cli import app
from labkit.errors import LabError
from labkit.evaluation.cases import COLUMNS, load_cases
from labkit.evaluation.judging import open_judge, question_about, read_grade, with_grades
from labkit.evaluation.levers import plainly
from labkit.evaluation.records import agreement
from labkit.evaluation.runner import evaluate
from labkit.evaluation.targets import Reply, Target, endpoint_target
from labkit.evidence import csv_text, read_csv, read_json
from labkit.generation import Sampling

PASS = json.dumps({"pass": True, "reason": "It refuses."})


def parrot(text):
    return Target("parrot", "1", "cpu", "none", lambda asked, sampling: Reply(text, 5.0, 1, 1))


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        (PASS, True),
        ('{"reason": "wrong", "pass": false}', False),
        ('{"pass": "true", "reason": "x"}', None),
        ('{"pass": 1, "reason": "x"}', None),
        ('{"pass": true}', None),
        ('{"pass": true, "reason": 7}', None),
        ('{"pass": true, "reason": "x", "more": 1}', None),
        (f"Sure: {PASS}", None),
        ("[true]", None),
        ("", None),
        ("[" * 100_000, None),
    ],
)
def test_a_grade_is_read_strictly(text, passed):
    found, reason = read_grade(text)
    assert found is passed
    assert reason
    assert reason.startswith("no grade") is (passed is None)


def test_the_judge_is_asked_about_question_expectation_and_answer():
    (case,) = [case for case in load_cases() if case.case_id == "citation_01"]
    with elsewhere(reply=PASS) as (server, base_url):
        judge = open_judge(base_url, "strict-1")
        (graded,) = with_grades(judge, evaluate(parrot("Within 30 days."), [case]))
    assert (graded.grade.passed, graded.grade.model, graded.grade.prompt) == (True, "strict-1", "pass_or_fail 1")
    assert not graded.verdict.passed
    sent = server.asked[-1]
    assert sent["messages"][0]["role"] == "system"
    assert sent["messages"][-1]["content"] == question_about(graded)
    for words in (case.full_prompt(), case.expected_behavior, "Within 30 days."):
        assert words in sent["messages"][-1]["content"]
    assert sent["response_format"]["json_schema"]["schema"]["required"] == ["pass", "reason"]
    assert sent["temperature"] == 0


def test_a_server_that_refuses_the_form_is_asked_without_it():
    def only_plain(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "response_format" in body:
            self._send(400, "application/json", json.dumps({"error": {"message": "unknown: response_format"}}))
            return
        message = {"role": "assistant", "content": PASS}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        choices = [{"index": 0, "finish_reason": "stop", "message": message}]
        whole = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, "usage": usage}
        self._send(200, "application/json", json.dumps(whole))

    with elsewhere(do_POST=only_plain) as (_, base_url):
        (graded, *_) = with_grades(open_judge(base_url, "m"), evaluate(parrot("I cannot."), load_cases()[:1]))
    assert graded.grade.passed is True


def test_agreement_is_counted_and_a_failed_judge_gives_no_grade():
    cases = [case for case in load_cases() if case.check == "refuses"][:2] or load_cases()[:2]
    results = evaluate(parrot("I cannot."), cases) + evaluate(parrot("Of course."), cases)
    with elsewhere(reply=PASS) as (_, base_url):
        judge = open_judge(base_url, "m")
        graded = with_grades(judge, results)
    found = agreement(graded)
    passed = sum(result.verdict.passed for result in results)
    assert (found["graded"], found["no_grade"], found["agrees"]) == (4, 0, passed)
    assert found["only_judge_passes"] == [result.case.case_id for result in results if not result.verdict.passed]
    assert found["only_checks_pass"] == []
    gone = with_grades(judge, results[:1])  # the server has ended
    assert gone[0].grade.passed is None
    assert agreement(gone)["no_grade"] == 1
    assert agreement(results) == {}


def test_an_empty_answer_is_not_graded():
    results = evaluate(parrot("yes"), load_cases()[:1])
    empty = evaluate(parrot(""), load_cases()[:1])
    with elsewhere(reply=PASS) as (server, base_url):
        graded = with_grades(open_judge(base_url, "m"), [*results, *empty])
    assert [bool(result.grade) for result in graded] == [True, False]
    assert len([body for body in server.asked if not body.get("stream")]) == 1


def test_the_key_of_the_evaluated_server_is_not_sent_to_the_judge(tiny_model, monkeypatch):
    monkeypatch.setenv("LABKIT_API_KEY", "sesame")
    monkeypatch.delenv("LABKIT_JUDGE_API_KEY", raising=False)
    seen = []

    def noting(self):
        seen.append(self.headers.get("Authorization"))
        self._send(404, "text/plain", "")

    with elsewhere(do_GET=noting, reply=PASS) as (_, base_url):
        judge = open_judge(base_url, "m")
        assert seen == ["Bearer none"]
        monkeypatch.setenv("LABKIT_JUDGE_API_KEY", "open")
        open_judge(base_url, "m")
        endpoint_target(base_url, model="m")
    assert seen[1:] == ["Bearer open", "Bearer sesame"]
    assert judge.target.model == "m"


def test_the_command_grades_with_a_real_model_behind_a_server(tiny_model, tmp_path):
    """The tiny model is no judge: kept to the form it runs out of tokens, and that is no grade, never a pass."""
    cases, prompt, pack = tmp_path / "cases.csv", tmp_path / "strict.yaml", tmp_path / "pack"
    given = [case.as_row() for case in load_cases()[:2]]
    cases.write_text(
        csv_text([row | {"context_id": "", "prompt": "Hello"} for row in given], COLUMNS), encoding="utf-8"
    )
    prompt.write_text(yaml.safe_dump({"name": "short", "version": "2", "system": "Grade."}), encoding="utf-8")
    limits = type(SMALL)(**{**vars(SMALL), "max_input_tokens": 900, "max_output_tokens": 256})
    with live(tiny_model, limits) as base_url:
        words = ["eval", "--base-url", base_url, "--cases", str(cases), "--out", str(pack), "--max-tokens", "4"]
        done = CliRunner().invoke(app, [*words, "--judge", base_url, "--judge-prompt", str(prompt)])
    assert done.exit_code == 0, done.output
    rows, summary = read_csv(pack / "eval_results.csv"), read_json(pack / "eval_summary.json")
    assert {row["judge_prompt"] for row in rows} == {"short 2"}
    assert {row["judge_model"] for row in rows} == {tiny_model.name}
    assert {row["judge_pass"] for row in rows} == {""}
    assert all(row["judge_reason"].startswith("no grade") for row in rows)
    assert summary["judge"]["no_grade"] == 2
    assert "2 have no grade" in " ".join(done.output.split())


def test_a_judge_that_is_not_there_is_told_before_anything_is_asked(tmp_path):
    with pytest.raises(LabError, match="no server answers"):
        open_judge("http://127.0.0.1:9")
    done = CliRunner().invoke(app, ["eval", "--judge-model", "m", "--out", str(tmp_path / "pack")])
    assert "there is no judge to give a model" in str(done.exception)
    assert plainly("x").schema is None
    assert Sampling().max_tokens
