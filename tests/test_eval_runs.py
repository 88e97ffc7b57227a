"""Runs of the cases: many requests at once, repeats, a server that refuses, and a run that is killed and goes on."""

import contextlib
import io
import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from rich.console import Console
from tiny_server import HELLO, LONG, SMALL, live
from typer.testing import CliRunner

from labkit.adaptation.documents import Document
from labkit.adaptation.prompts import PromptVariant
from labkit.adaptation.rag import Library
from labkit.cli import app
from labkit.errors import LabError
from labkit.evaluation import checks, targets
from labkit.evaluation.cases import COLUMNS, Case, load_cases
from labkit.evaluation.compare import compare_runs, pass_rates, read_run, wilson_interval
from labkit.evaluation.levers import Levers, plainly
from labkit.evaluation.records import failure_table, summarise, write_evaluation
from labkit.evaluation.resume import PROGRESS, AnswersSoFar
from labkit.evaluation.runner import evaluate, run_id
from labkit.evaluation.targets import Reply, Target, endpoint_target, model_target
from labkit.evidence import Pack, csv_text, read_csv, read_json, read_manifest
from labkit.generation import Sampling
from labkit.progress import AnswerDisplay
from labkit.report.evaluation import print_failures
from labkit.verification import Verdict, verify

SHORT = Sampling(max_tokens=4)
TERSE = PromptVariant("terse", "1", "Answer in one word.")
DOCUMENT = Document("POL-91", "Parcels", "Parcels are carried by Heron Freight.")


def cases(count=5, check="max_words:9"):
    risks = ("format", "grounding", "safety", "performance", "regression")
    return [
        Case(f"case_{number}", f"hello {number}", "e", risks[number % 5], "", "", "", check, "")
        for number in range(count)
    ]


def target(ask, concurrency=1):
    return Target("echo", "1", "cpu", "none", ask, "by hand", concurrency)


def echo(asked, sampling):
    return Reply(f"{question(asked)} {sampling.seed}", 5.0, 1, 4)


def question(asked):
    return asked.messages[-1]["content"]


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# Requests at once


def test_requests_run_at_once_and_results_stand_in_the_order_of_the_cases():
    """The first case waits for the last one: with one request at a time, or two, it would wait for ever."""
    last = threading.Event()

    def ask(asked, sampling):
        if question(asked) == "hello 0":
            assert last.wait(10)
        if question(asked) == "hello 2":
            last.set()
        return echo(asked, sampling)

    ended = []
    found = evaluate(target(ask, 4), cases(3), SHORT, lambda result: ended.append(result.case.case_id), concurrency=3)
    assert [result.case.case_id for result in found] == ["case_0", "case_1", "case_2"]
    assert ended.index("case_2") < ended.index("case_0")


def test_numbers_that_make_no_sense_are_refused():
    with pytest.raises(LabError, match="4 requests at once are too many for echo, which answers one at a time"):
        evaluate(target(echo), cases(), SHORT, concurrency=4)
    with pytest.raises(LabError, match="--concurrency 0 is below 1"):
        evaluate(target(echo, 4), cases(), SHORT, concurrency=0)
    with pytest.raises(LabError, match="--repeats 0 is below 1"):
        evaluate(target(echo), cases(), SHORT, repeats=0)


@contextlib.contextmanager
def every_slot_taken(base_url):
    """An answer of thousands of tokens that is read no further than its first bytes, until the block ends."""
    body = {"messages": HELLO, "max_tokens": 3000, "stream": True}
    with httpx.stream("POST", f"{base_url}/v1/chat/completions", json=body, timeout=60) as held:
        pieces = held.iter_bytes()  # a name, because the connection closes with the iterator
        assert next(pieces)
        yield


def test_a_busy_server_is_waited_for_and_the_wait_is_no_latency(tiny_model, monkeypatch):
    """Our server says 503 and to come back after a second; the openai client's own retries are switched off."""
    refused, read = threading.Event(), targets._retry_after
    monkeypatch.setattr(targets, "RETRIES", 0)
    monkeypatch.setattr(targets, "_retry_after", lambda error: (refused.set(), read(error))[1])
    with live(tiny_model, replace(LONG, queue=0)) as base_url, ThreadPoolExecutor(1) as pool:
        server = endpoint_target(base_url)
        with every_slot_taken(base_url):
            started = time.perf_counter()
            asked = pool.submit(server.ask, plainly("hello"), SHORT)
            assert refused.wait(20)
        reply = asked.result(20)
        waited = (time.perf_counter() - started) * 1000
        assert reply.completion_tokens == 4
        assert 0 < reply.latency_ms < waited - 900
        monkeypatch.setattr(targets, "PATIENCE", 0.5)
        with every_slot_taken(base_url), pytest.raises(LabError, match="503"):
            server.ask(plainly("hello"), SHORT)


def test_the_backend_is_recorded_for_a_model_here_and_behind_a_server(tiny_model):
    assert model_target(tiny_model).backend == "transformers"
    with live(tiny_model) as base_url:
        assert endpoint_target(base_url).backend == "transformers"


# A case without an answer


def test_a_case_that_the_server_refuses_does_not_end_the_run(tiny_model, tmp_path):
    """The prompt of one case is longer than the server takes: a real refusal, told with its reason."""
    asked = cases(5)
    asked[1] = replace(asked[1], prompt="hello " * 200)
    with live(tiny_model) as base_url:
        server = endpoint_target(base_url)
        found = evaluate(server, asked, SHORT, concurrency=4)
        summary = write_evaluation(Pack(tmp_path, "local_cpu"), found, server, SHORT, concurrency=4)
    assert [result.answered for result in found] == [True, False, True, True, True]
    assert found[1].verdict.kind == "no answer"
    assert not found[1].verdict.passed
    assert "400" in found[1].verdict.reason
    assert {"risk": "grounding", "check": "no answer", "count": 1, "case_ids": ["case_1"]}.items() <= (
        next(row for row in summary["failures"] if row["check"] == "no answer").items()
    )
    assert read_csv(tmp_path / "eval_results.csv")[1]["pass"] == "false"


def test_a_run_in_which_nothing_is_answered_is_an_error_and_writes_nothing(tiny_model):
    with live(tiny_model) as base_url:
        server = endpoint_target(base_url)
        with pytest.raises(LabError, match=r"none of the 2 cases was answered; the first: .*400"):
            evaluate(server, [replace(case, prompt="hello " * 200) for case in cases(2)], SHORT)


class Odd(BaseHTTPRequestHandler):
    """Answers every POST with JSON that is no chat completion."""

    def do_POST(self):
        body = b'{"ok": true}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_a_server_that_answers_in_another_shape_is_told():
    with HTTPServer(("127.0.0.1", 0), Odd) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        try:
            odd = endpoint_target(f"http://127.0.0.1:{server.server_port}", model="m")
            with pytest.raises(LabError, match="answered a case without choices or without usage"):
                odd.ask(plainly("hello"), SHORT)
        finally:
            server.shutdown()
    assert odd.backend == "unknown"


# Repeats


def test_repeats_have_seeds_of_their_own_and_a_case_passes_only_when_all_do(tmp_path):
    asked = cases(5, "contains_all")
    asked = [replace(case, expected="hello") for case in asked[:4]] + [replace(asked[4], expected="7|hello")]
    found = evaluate(target(echo), asked, Sampling(seed=5), repeats=3)
    assert [(result.repeat, result.seed) for result in found[:4]] == [(1, 5), (2, 6), (3, 7), (1, 5)]
    assert [result.verdict.passed for result in found[-3:]] == [False, False, True]
    summary = write_evaluation(Pack(tmp_path, "local_cpu"), found, target(echo), Sampling(seed=5))
    assert (summary["cases"], summary["repeats"]) == (5, 3)
    low, high = wilson_interval(1, 3)
    assert summary["by_risk"]["regression"] == {
        "passed": 0,
        "failed": 1,
        "total": 1,
        "failed_ids": ["case_4"],
        "pass_rate": {"passed": 1, "total": 3, "low": round(low, 4), "high": round(high, 4)},
    }
    assert failure_table(found) == summary["failures"]
    assert [row["case_ids"] for row in summary["failures"]] == [["case_4"]]
    table = read_csv(tmp_path / "eval_results.csv")
    assert [row["repeat"] for row in table] == ["1", "2", "3"] * 5
    assert {row["backend"] for row in table} == {"by hand"}
    assert len(read_csv(tmp_path / "eval_cases.csv")) == 5


def test_the_seed_of_a_repeat_reaches_the_model(tiny_model):
    warm = Sampling(max_tokens=6, temperature=1.5)
    found = evaluate(model_target(tiny_model), cases(1), warm, repeats=3)
    assert len({result.reply.text for result in found}) == 3
    again = evaluate(model_target(tiny_model), cases(1), warm, repeats=3)
    assert [result.reply.text for result in again] == [result.reply.text for result in found]


def test_the_json_lines_are_the_rows_of_the_table(tmp_path):
    found = evaluate(target(echo), cases(), SHORT, repeats=2)
    write_evaluation(Pack(tmp_path, "local_cpu"), found, target(echo), SHORT)
    lines, table = rows(tmp_path / "eval_results.jsonl"), read_csv(tmp_path / "eval_results.csv")
    spoken = [{key: json.dumps(value) if key == "pass" else str(value) for key, value in row.items()} for row in lines]
    assert [{key: "" if value == "None" else value for key, value in row.items()} for row in spoken] == table
    assert lines[0]["pass"] is True
    assert "eval_results.jsonl" in read_manifest(tmp_path)["files"]


def test_verification_counts_repeats_by_case(tmp_path):
    """The summary of a run with repeats recomputes; a forged rate, a lost row and a doubled one do not."""
    asked = [replace(case, case_id=f"{case.risk}_{at}") for at, case in enumerate(cases(10))]
    asked[2] = replace(asked[2], check="contains_all", expected="hello 2 1")
    pack, named = Pack(tmp_path, "local_cpu"), replace(target(echo), model="mini-instruct", revision="0123456789ab")
    write_evaluation(pack, evaluate(named, asked, SHORT, repeats=3), named, SHORT)

    def found(name="eval_summary.json"):
        return next(finding for finding in verify(tmp_path).artifacts if finding.name == name)

    assert found().verdict is Verdict.SUPPORTED, found().detail
    assert "safety 1/2" in found().detail
    assert "10 cases tried 3 times each, 9 passed and 1 failed" in found("eval_results.csv").detail
    crossed = next(finding for finding in verify(tmp_path).cross_checks if finding.name == "results match the cases")
    assert crossed.verdict is Verdict.SUPPORTED, crossed.detail

    summary, table = read_json(tmp_path / "eval_summary.json"), read_csv(tmp_path / "eval_results.csv")
    summary["by_risk"]["safety"]["pass_rate"]["high"] = 1.0
    pack.write_json("eval_summary.json", summary, "13.2")
    assert "pass_rate high" in found().detail
    pack.write_csv("eval_results.csv", table[:-1], list(table[0]), "13.2")
    assert found("eval_results.csv").verdict is Verdict.CONTRADICTED
    pack.write_csv("eval_results.csv", [*table, table[0]], list(table[0]), "13.2")
    assert "one id twice" in found("eval_results.csv").detail


def test_comparing_runs_with_repeats_goes_by_case(tmp_path):
    once, thrice = tmp_path / "once", tmp_path / "thrice"
    asked = [replace(case, check="contains_all", expected=" 0") for case in cases()]
    for folder, repeats in ((once, 1), (thrice, 3)):
        found = evaluate(target(echo), asked, SHORT, repeats=repeats)
        write_evaluation(Pack(folder, "local_cpu"), found, target(echo), SHORT)
    first = read_run(thrice)
    assert (len(first.rows), first.repeats) == (5, 3)
    assert not any(first.passed(case_id) for case_id in list(first.rows)[1:])
    assert first.rows["case_1"]["repeat"] == "2"
    assert [row["total"] for row in pass_rates([first])] == [1] * 5
    with pytest.raises(LabError, match="asked 1 times in once and 3 times in thrice"):
        compare_runs(read_run(once), first)
    table = read_csv(thrice / "eval_results.csv")
    Pack(thrice, "local_cpu").write_csv("eval_results.csv", table[:-1], list(table[0]), "13.2")
    with pytest.raises(LabError, match="more repeats of some cases than of others"):
        read_run(thrice)


def test_the_table_tells_repeats_with_their_interval():
    found = evaluate(target(echo), cases(), SHORT, repeats=4)
    console = Console(file=io.StringIO(), width=140)
    print_failures(summarise(found, target(echo), SHORT, "local_cpu"), console)
    printed = console.file.getvalue()
    for words in ("passed all 4 times", "4 of 4, 51% to 100%", "At temperature 0 the seed changes nothing"):
        assert words in printed, printed


# What a run is known by


def known_by(run=None, **changes):
    return run_id(run or target(echo), **{"cases": cases(), "sampling": SHORT, **changes})


def test_the_same_run_has_the_same_id_and_a_judgement_changes_nothing():
    judged = [replace(case, learner_pass="true", learner_notes="good") for case in cases()]
    assert known_by() == known_by() == known_by(cases=judged)
    assert len(known_by()) == 16
    int(known_by(), 16)


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling": Sampling(max_tokens=5)},
        {"sampling": replace(SHORT, seed=1)},
        {"sampling": replace(SHORT, temperature=0.5)},
        {"sampling": replace(SHORT, stop=("x",))},
        {"repeats": 2},
        {"concurrency": 2},
        {"levers": Levers(constrained=True)},
        {"levers": Levers(prompt=TERSE)},
        {"levers": Levers(library=Library((DOCUMENT,)))},
        {"cases": [replace(case, context_id="POL-01") for case in cases()]},
        {"cases": [replace(case, expected="y") for case in cases()]},
        {"cases": cases(4)},
        {"run": replace(target(echo), model="other")},
        {"run": replace(target(echo), revision="2")},
        {"run": replace(target(echo), device="cuda")},
        {"run": replace(target(echo), dtype="int4")},
        {"run": replace(target(echo), backend="onnx")},
    ],
)
def test_whatever_could_change_a_run_gives_it_another_id(changes):
    assert known_by(**changes) != known_by()


def test_the_id_of_the_summary_is_that_of_the_run_that_was_begun(tmp_path):
    found = evaluate(target(echo), cases(), SHORT, repeats=2)
    summary = write_evaluation(Pack(tmp_path, "local_cpu"), found, target(echo), SHORT, levers=Levers(prompt=TERSE))
    assert summary["run_id"] == known_by(repeats=2, levers=Levers(prompt=TERSE))


# A run that was killed


class Killed:
    """Answers like `echo`, and is interrupted at the question `at`; `asked` are the prompts that came."""

    def __init__(self, at=""):
        self.at, self.asked = at, []

    def __call__(self, asked, sampling):
        self.asked.append(question(asked))
        if question(asked) == self.at:
            raise KeyboardInterrupt
        return echo(asked, sampling)


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    first, second = Killed(at="hello 3"), Killed()
    with pytest.raises(KeyboardInterrupt):
        evaluate(target(first), cases(), SHORT, so_far=AnswersSoFar(tmp_path, "run"))
    with open(tmp_path / PROGRESS, "a", encoding="utf-8") as file:
        file.write('{"run_id": "run", "case_id": "case_3", "repeat": 1, "reply": {"te')
    so_far = AnswersSoFar(tmp_path, "run", resume=True)
    assert list(so_far.held) == [("case_0", 1), ("case_1", 1), ("case_2", 1)]
    seen = []
    found = evaluate(target(second), cases(), SHORT, seen.append, so_far=so_far)
    assert second.asked == ["Hello", "hello 3", "hello 4"]
    assert found == evaluate(target(echo), cases(), SHORT)
    assert len(seen) == 5
    again = Killed()
    assert evaluate(target(again), cases(), SHORT, so_far=AnswersSoFar(tmp_path, "run", resume=True)) == found
    assert again.asked == []


def test_only_answers_of_the_same_run_are_taken(tmp_path):
    evaluate(target(echo), cases(), SHORT, so_far=AnswersSoFar(tmp_path, "run"))
    assert not AnswersSoFar(tmp_path, "another", resume=True).held
    evaluate(target(echo), cases(), SHORT, so_far=AnswersSoFar(tmp_path, "run"))
    assert not AnswersSoFar(tmp_path, "run").held
    assert (tmp_path / PROGRESS).read_text() == ""


def test_a_case_without_an_answer_is_asked_again_when_the_run_goes_on(tmp_path):
    def ask(asked, sampling):
        if question(asked) == "hello 2":
            raise LabError("the server refused a case", "look at its log")
        return echo(asked, sampling)

    evaluate(target(ask), cases(), SHORT, so_far=AnswersSoFar(tmp_path, "run"))
    second = Killed()
    found = evaluate(target(second), cases(), SHORT, so_far=AnswersSoFar(tmp_path, "run", resume=True))
    assert second.asked == ["Hello", "hello 2"]
    assert all(result.answered for result in found)


def test_requests_at_once_are_interrupted_too(tmp_path):
    first = Killed(at="hello 3")
    with pytest.raises(KeyboardInterrupt):
        evaluate(target(first, 4), cases(), SHORT, concurrency=2, so_far=AnswersSoFar(tmp_path, "run"))
    so_far = AnswersSoFar(tmp_path, "run", resume=True)
    assert ("case_3", 1) not in so_far.held
    assert evaluate(target(echo), cases(), SHORT, so_far=so_far) == evaluate(target(echo), cases(), SHORT)


def test_what_a_killed_run_leaves_is_no_part_of_the_pack(tmp_path):
    pack = Pack(tmp_path, "local_cpu")
    (result, *_) = results = evaluate(target(echo), cases(), SHORT)
    write_evaluation(pack, results, target(echo), SHORT)
    before = verify(tmp_path)
    AnswersSoFar(tmp_path, "run").add(("case_0", 1), result.reply, result.verdict)
    assert verify(tmp_path) == before
    pack.record("eval_results.jsonl", "13.2")
    assert PROGRESS not in read_manifest(tmp_path)["files"]


def test_the_command_resumes_repeats_and_tells_its_run(tiny_model, tmp_path):
    """Against a real server: a run that was cut after two answers, then gone on with, is the whole run."""
    path, pack = tmp_path / "cases.csv", tmp_path / "pack"
    given = [case.as_row() for case in {case.risk: case for case in reversed(load_cases())}.values()]
    path.write_text(csv_text(given, COLUMNS), encoding="utf-8")
    with live(tiny_model, replace(SMALL, max_input_tokens=2000)) as base_url:
        words = ["eval", "--base-url", base_url, "--cases", str(path), "--out", str(pack)]
        words += ["--max-tokens", "6", "--repeats", "2", "--temperature", "1", "--concurrency", "2"]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        whole, lines = read_json(pack / "eval_summary.json"), rows(pack / "eval_results.jsonl")
        assert not (pack / PROGRESS).exists()
        kept = AnswersSoFar(pack, whole["run_id"])
        as_it_was = checks.Verdict(False, "equals", "as it was")
        for line in lines[:3]:
            text = f"kept {line['case_id']}"
            kept.add((line["case_id"], line["repeat"]), Reply(text, 5.0, 1, 1), as_it_was)
        done = CliRunner().invoke(app, [*words, "--resume"])
    assert done.exit_code == 0, done.output
    assert f"run {whole['run_id']}: 3 of 10 answers are there already" in done.output
    again = rows(pack / "eval_results.jsonl")
    assert [row["output"].startswith("kept ") for row in again] == [True] * 3 + [False] * 7
    assert [row["output"] for row in again[3:]] == [row["output"] for row in lines[3:]]
    assert read_json(pack / "eval_summary.json")["run_id"] == whole["run_id"]
    assert not (pack / PROGRESS).exists()


# Progress


def test_progress_is_shown_on_a_terminal_and_nowhere_else(monkeypatch):
    for terminal in (False, True):
        stream = io.StringIO()
        stream.isatty = lambda terminal=terminal: terminal
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", "xterm")
        with AnswerDisplay(5) as display:
            evaluate(target(echo), cases(), SHORT, display)
        assert ("5/5" in stream.getvalue()) is terminal
        assert bool(stream.getvalue()) is terminal
