"""Cases are read strictly, checks say why, and results never become one average."""

import csv
import json
from collections import Counter

import pytest
from tiny_server import SMALL, live

from labkit.errors import LabError
from labkit.evaluation.cases import COLUMNS, RISKS, load_cases
from labkit.evaluation.checks import CHECKS, Answer, judge, parse_checks
from labkit.evaluation.runner import (
    cases_with_review,
    evaluate,
    failure_table,
    one_of_each_risk,
    summarise,
    write_evaluation,
)
from labkit.evaluation.targets import Reply, Target, endpoint_target, model_target
from labkit.evidence import Pack, read_csv, read_json
from labkit.generation import Sampling
from labkit.layout import DATA

FORM = '{"order_id": "1", "customer": "A B", "item": "lamp", "reason": "late", "amount": 2.50}'


def verdict(check: str, text: str, expected: str = "", latency: float = 10.0):
    return judge(Answer(text, latency), parse_checks(check, expected))


def write_cases(path, **changes):
    row = dict.fromkeys(COLUMNS, "")
    row |= {"case_id": "a", "prompt": "p", "expected_behavior": "e", "risk": "safety", "check": "refuses"} | changes
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerow(row)
    return path


@pytest.mark.parametrize(
    ("check", "expected", "good", "bad"),
    [
        ("contains_all", "30 days|card", "Within 30 DAYS to the card.", "Within 30 days."),
        ("excludes", "password", "No.", "The Password is x."),
        ("cites:POL-03", "", "Yes. [POL-03]", "Yes. [POL-04]"),
        ("cites:POL-03", "", "Yes. [POL-03]", "Yes. [POL-03] [POL-04]"),
        ("json_schema:refund_form", "", FORM, FORM.replace("2.50", '"2.50"')),
        ("json_schema:refund_form", "", FORM, FORM.replace("2.50", "true")),
        ("json_schema:refund_form", "", FORM, '{"order_id": "1"}'),
        ("json_schema:refund_form", "", FORM, "[1]"),
        ("json_schema:refund_form", "", FORM, f"Here it is: {FORM}"),
        ("json_equals", FORM, FORM.replace(" ", "  ", 1).replace("2.50", "2.5"), FORM.replace("2.50", "2.60")),
        ("json_equals", FORM, FORM, FORM.replace("}", ', "more": 1}')),
        ("bullets:3", "", "- a\n- b\n- c", "- a\n- b"),
        ("bullets:3", "", "* a\n* b\n* c\n", "Here:\n- a\n- b\n- c"),
        ("refuses", "", "I cannot confirm it.", "Sure, done."),
        ("refuses", "", "I will not guess.", "Of course."),
        ("refuses", "", "Sorry, but I'm unable to share that.", "Opened glue cannot be returned."),
        ("equals", "You are welcome.", " You are welcome. ", "You are welcome"),
        ("max_words:3", "", "one two three", "one two three four"),
        ("contains_all;cites:POL-01", "30", "30 [POL-01]", "30"),
    ],
)
def test_check(check, expected, good, bad):
    assert verdict(check, good, expected).passed
    failed = verdict(check, bad, expected)
    assert not failed.passed
    assert failed.reason


def test_latency_is_compared_in_milliseconds():
    assert verdict("latency_ms<800", "x", latency=799).passed
    assert not verdict("latency_ms<800", "x", latency=801).passed


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_no_check_passes_on_an_empty_answer(name):
    argument = {"json_schema": "refund_form", "json_equals": "{}", "refuses": ""}.get(name, "3")
    for empty in ("", "  \n"):
        failed = verdict(f"{name}:{argument}" if argument else name, empty)
        assert not failed.passed
        assert failed.kind == "empty"


def test_the_first_failing_check_is_named():
    assert verdict("contains_all;cites:POL-01", "30 [POL-02]", "30").kind == "cites"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"risk": "luck"}, r"no risk called 'luck' \(cases\.csv, row 2, column risk\)"),
        ({"prompt": " "}, r"empty field \(cases\.csv, row 2, column prompt\)"),
        ({"pass": "maybe"}, r"'maybe' is not a judgement \(cases\.csv, row 2, column pass\)"),
        ({"context_id": "POL-77"}, r"no note 'POL-77' \(cases\.csv, row 2, column context_id\)"),
        ({"check": "is_nice"}, r"no check called 'is_nice' \(cases\.csv, row 2, column check\)"),
        ({"check": "bullets:many"}, r"needs a number, not 'many' \(cases\.csv, row 2, column check\)"),
        ({"check": "json_schema:tax"}, r"no form called 'tax' \(cases\.csv, row 2, column check\)"),
        ({"check": "json_equals", "expected": "{"}, r"not JSON.*\(cases\.csv, row 2, column expected\)"),
        ({"check": "contains_all"}, r"nothing to compare with \(cases\.csv, row 2, column check\)"),
        ({"check": ";"}, r"names no check \(cases\.csv, row 2, column check\)"),
    ],
)
def test_a_bad_cell_is_named_by_row_and_column(tmp_path, changes, message):
    with pytest.raises(LabError, match=message):
        load_cases(write_cases(tmp_path / "cases.csv", **changes))


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "cases.csv"
    with pytest.raises(LabError, match=r"cases\.csv is missing"):
        load_cases(path)
    path.write_text("case_id,prompt\n1,2\n", encoding="utf-8")
    with pytest.raises(LabError, match=r"cases\.csv lacks columns: expected_behavior"):
        load_cases(path)
    path.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    with pytest.raises(LabError, match="holds no cases"):
        load_cases(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LabError, match="not readable CSV"):
        load_cases(path)
    write_cases(path)
    path.write_text(path.read_text(encoding="utf-8") + path.read_text(encoding="utf-8").splitlines()[1] + "\n")
    with pytest.raises(LabError, match="a case_id twice: a"):
        load_cases(path)


def test_a_spreadsheet_may_have_saved_it_with_a_byte_order_mark(tmp_path):
    path = write_cases(tmp_path / "cases.csv", **{"pass": "TRUE", "notes": "caf\u00e9"})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    case = load_cases(path)[0]
    assert (case.learner_pass, case.learner_notes) == ("true", "caf\u00e9")


def test_shipped_cases_cover_the_five_risks():
    cases = load_cases()
    assert len(cases) >= 25
    assert {"format_01", "citation_01", "safety_01", "latency_01", "regression_01"} <= {case.case_id for case in cases}
    assert all(count >= 4 for count in Counter(case.risk for case in cases).values())
    assert {case.risk for case in cases} == set(RISKS)


def parrot(text: str) -> Target:
    return Target("parrot", "1", "cpu", "none", lambda prompt, sampling: Reply(text, 5.0, 1, 1))


def test_results_summary_and_failure_table_agree(tmp_path):
    pack, sampling = Pack(tmp_path, "local_cpu"), Sampling(max_tokens=8)
    results = evaluate(parrot("I cannot."), load_cases(), sampling)
    summary = write_evaluation(pack, results, parrot(""), sampling)
    rows = read_csv(tmp_path / "eval_results.csv")
    assert len(rows) == summary["cases"] == len(load_cases())
    for risk in RISKS:
        failed = [row["case_id"] for row in rows if row["risk"] == risk and row["pass"] == "false"]
        assert summary["by_risk"][risk]["failed_ids"] == failed
        assert summary["by_risk"][risk]["passed"] + len(failed) == summary["by_risk"][risk]["total"]
    assert summary["by_risk"]["safety"]["failed"] == 0
    assert sum(row["count"] for row in summary["failures"]) == sum(row["pass"] == "false" for row in rows)
    assert not any("average" in key or "accuracy" in key for key in summary)
    assert all(row["notes"] for row in rows)
    assert read_json(tmp_path / "eval_summary.json") == json.loads(json.dumps(summary))


def test_the_learners_judgement_is_kept_and_never_mixed_with_the_verdict(tmp_path):
    pack, sampling = Pack(tmp_path, "local_cpu"), Sampling()
    cases = load_cases()
    write_evaluation(pack, evaluate(parrot("no"), cases, sampling), parrot("no"), sampling)
    path = tmp_path / "eval_cases.csv"
    rows = read_csv(path)
    rows[0] |= {"pass": "true", "notes": "good enough for me"}
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    results = evaluate(parrot("no"), cases_with_review(pack, cases), sampling)
    write_evaluation(pack, results, parrot("no"), sampling)
    again = read_csv(tmp_path / "eval_results.csv")[0]
    assert (again["pass"], again["learner_pass"], again["learner_notes"]) == ("false", "true", "good enough for me")
    assert read_csv(path)[0]["notes"] == "good enough for me"


def test_one_of_each_risk_is_shown():
    shown = one_of_each_risk(evaluate(parrot("no"), load_cases(), Sampling()))
    assert [row["case_id"] for row in shown] == ["format_01", "citation_01", "safety_01", "latency_01", "regression_01"]


def test_failures_come_worst_first():
    rows = failure_table(evaluate(parrot("no"), load_cases(), Sampling()))
    assert [row["count"] for row in rows] == sorted((row["count"] for row in rows), reverse=True)
    assert all(len(row["case_ids"]) == row["count"] for row in rows)


def test_a_note_stands_before_its_question():
    case = next(case for case in load_cases() if case.case_id == "citation_01")
    assert case.full_prompt().startswith("Note [POL-01] Refunds: ")
    assert case.full_prompt().endswith("\n\nBy when must an item be returned?")


def test_the_key_of_the_environment_reaches_a_server_that_asks_for_one(tiny_model, monkeypatch):
    with live(tiny_model, SMALL, api_keys=("sesame",)) as base_url:
        monkeypatch.delenv("LABKIT_API_KEY", raising=False)
        with pytest.raises(LabError, match="401"):
            endpoint_target(base_url).ask("hello", Sampling(max_tokens=2))
        monkeypatch.setenv("LABKIT_API_KEY", "sesame")
        assert endpoint_target(base_url).ask("hello", Sampling(max_tokens=2)).completion_tokens


def test_no_server_is_an_error_with_a_remedy():
    with pytest.raises(LabError, match="no server answers"):
        endpoint_target("http://127.0.0.1:9")


def test_embedded_model_answers_at_least_90_percent_of_held_out_prompts(embedded):
    """The bar that the shipped weights must clear: exact checks on phrasings and names that training never had."""
    cases = load_cases(DATA / "corpus" / "held_out_cases.csv")
    results = evaluate(model_target(embedded), cases, Sampling(max_tokens=96))
    passed = sum(result.verdict.passed for result in results)
    assert passed / len(results) >= 0.9, summarise(results, parrot(""), Sampling(), "local_cpu")["failures"]
