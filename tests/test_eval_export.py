"""The same cases for lm-evaluation-harness and promptfoo: what is written, and what is said to be left out."""

import json
import re
import shutil
import subprocess

import pytest
import yaml
from typer.testing import CliRunner

from labkit.adaptation.prompts import find_prompt
from labkit.cli import app
from labkit.errors import LabError
from labkit.evaluation.cases import Case, load_cases
from labkit.evaluation.checks import CHECKS, Answer, judge, parse_checks
from labkit.evaluation.export import Export, write_lm_eval, write_promptfoo
from labkit.evaluation.export.promptfoo import assertions_for
from labkit.evaluation.levers import PLAIN, Levers
from labkit.generation import Sampling

# Among the types of promptfoo's documentation (deterministic assertions, and javascript), those that are written.
DOCUMENTED = {"icontains-all", "icontains-any", "contains", "regex", "is-json", "equals", "latency", "javascript"}
SERVER = "http://127.0.0.1:8000/v1"


def exported(cases, levers=PLAIN, sampling=None):
    return Export(tuple(cases), levers, sampling or Sampling(max_tokens=96), SERVER, "mini-instruct")


def case(check, expected="", case_id="a", risk="format", prompt="p"):
    return Case(case_id, prompt, "e", risk, "", "", "", check, expected)


def text(path):
    return path.read_text(encoding="utf-8")


# promptfoo


def test_the_promptfoo_configuration_has_the_documented_structure(tmp_path):
    cases = load_cases()
    command = write_promptfoo(exported(cases, Levers(prompt=find_prompt("label_by_example"))), tmp_path)
    config = yaml.safe_load(text(tmp_path / "promptfooconfig.yaml"))
    assert set(config) == {"description", "prompts", "providers", "defaultTest", "tests"}
    (provider,) = config["providers"]
    assert provider["id"] == "openai:chat:mini-instruct"
    assert (provider["config"]["apiBaseUrl"], provider["config"]["max_tokens"]) == (SERVER, 96)
    assert provider["config"]["apiKeyEnvar"] == "LABKIT_API_KEY"
    assert config["prompts"] == ["file://prompt.json"]
    turns = json.loads(text(tmp_path / "prompt.json"))
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert turns[-1]["content"] == "{{question}}"
    assert [test["description"] for test in config["tests"]] == [found.case_id for found in cases]
    for found, test in zip(cases, config["tests"], strict=True):
        assert test["vars"]["question"] == found.full_prompt()
        assert test["metadata"] == {"risk": found.risk}
        assert test["assert"]
        for assertion in test["assert"]:
            assert assertion["type"].removeprefix("not-") in DOCUMENTED
            assert {"value", "threshold"} & set(assertion) or assertion["type"] == "is-json"
    assert command in text(tmp_path / "README.md")


def test_what_promptfoo_cannot_judge_is_listed(tmp_path):
    cases = [case("language:ja"), case("max_words:3;equals_baseline", "x", "b"), case(r"regex:\Aa\Z", case_id="c")]
    write_promptfoo(exported([*cases, case("refuses", case_id="d")], Levers(constrained=True)), tmp_path)
    config = yaml.safe_load(text(tmp_path / "promptfooconfig.yaml"))
    assert [test["description"] for test in config["tests"]] == ["b", "d"]
    said = text(tmp_path / "README.md")
    for words in ("`a`: `language`", "`b`: `equals_baseline`", "`c`: `regex`", "`--schema`"):
        assert words in said
    assert "`d`" not in said
    write_promptfoo(exported([cases[1]]), tmp_path / "plain")
    assert "--schema" not in text(tmp_path / "plain" / "README.md")


JUDGED = [
    ("contains_all", "30 days|card", ["Within 30 DAYS to the card.", "Within 30 days."]),
    ("excludes", "password", ["No.", "The Password is x."]),
    ("cites:POL-03", "", ["Yes. [POL-03]", "[POL-03] [POL-04]", "Yes.", "[POL-04]"]),
    ("equals", "a (b) c/d.", [" a (b) c/d.\n", "a (b) c/dx"]),
    ("regex:(?:b|c)+$", "", ["ab", "ba"]),
    ("refuses", "", ["I cannot.", "We are UNABLE to.", "Opened glue cannot be returned."]),
    ("bullets:2", "", ["- a\n\n* b\n", "- a", "x\n- a"]),
    ("max_bullets:2", "", ["Head:\n- a\n- b", "- a\n- b\n- c", "none"]),
    ("min_words:3", "", ["a b  c", "a\nb"]),
    ("max_words:2", "", ["a b", "a b c"]),
]


@pytest.mark.parametrize(("check", "expected", "answers"), JUDGED)
def test_assertions_judge_as_the_check_does(check, expected, answers):
    """By promptfoo's own rules for each type; its JavaScript runs in node where there is one."""
    checks = parse_checks(check, expected)
    for answer in answers:
        told = [holds(assertion, answer) for assertion in assertions_for(checks[0])]
        if None not in told:
            assert all(told) is judge(Answer(answer, 1.0), checks).passed, (check, answer)


def holds(assertion, output):
    kind, value = assertion["type"].removeprefix("not-"), assertion["value"]
    negated = assertion["type"].startswith("not-")
    if kind == "javascript":
        return node(f"(({value}))", output)
    found = {
        "icontains-all": lambda: all(part.lower() in output.lower() for part in value),
        "icontains-any": lambda: any(part.lower() in output.lower() for part in value),
        "contains": lambda: value in output,
        "regex": lambda: bool(re.search(value, output)),
    }[kind]()
    return found is not negated


def node(code, output):
    if shutil.which("node") is None:
        return None
    script = f"const output = {json.dumps(output)}; process.stdout.write(String({code}))"
    return subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True).stdout == "true"


def test_every_check_is_translated_or_listed():
    arguments = {"json_schema": "refund_form", "json_equals": '{"a": 1.50}', "language": "ja", "cites": "POL-01"}
    untold = set()
    for name in CHECKS:
        (check,) = parse_checks(name, arguments.get(name, "3"))
        found = assertions_for(check)
        if not found:
            untold.add(name)
        if name == "json_equals":
            assert found[-1] == {"type": "equals", "value": {"a": 1.5}}
        if name == "latency_ms":
            assert found == [{"type": "latency", "threshold": 3.0}]
    assert untold == {"language", "equals_baseline"}


def test_braces_of_a_question_are_no_template(tmp_path):
    write_promptfoo(exported([case("contains_all", "{{x}}", prompt="Say {{x}}")]), tmp_path)
    (test,) = yaml.safe_load(text(tmp_path / "promptfooconfig.yaml"))["tests"]
    assert test["vars"]["question"] == "{% raw %}Say {{x}}{% endraw %}"
    assert test["assert"][0]["value"] == ["{% raw %}{{x}}{% endraw %}"]


# lm-evaluation-harness


def test_a_task_for_each_risk_with_the_levers_of_the_run(tmp_path):
    cases, prompt = load_cases(), find_prompt("label_by_example")
    command = write_lm_eval(exported(cases, Levers(prompt=prompt)), tmp_path)
    asked = {}
    for risk in {found.risk for found in cases}:
        rows = [json.loads(line) for line in text(tmp_path / f"{risk}.jsonl").splitlines()]
        asked |= {row["case_id"]: row for row in rows}
        written, function = text(tmp_path / f"{risk}.yaml").rsplit("process_results: ", 1)
        assert function == "!function labkit_checks.process_results\n"
        task = yaml.safe_load(written)
        assert (task["task"], task["tag"]) == (f"labkit_{risk}", "labkit_cases")
        assert task["description"] == prompt.system
        assert [sample["answer"] for sample in task["fewshot_config"]["samples"]] == [b for _, b in prompt.examples]
        assert task["num_fewshot"] == 2
        assert task["generation_kwargs"] == {"until": [], "max_gen_toks": 96, "temperature": 0.0, "do_sample": False}
    assert set(asked) == {found.case_id for found in cases}
    assert not any("latency" in row["check"] for row in asked.values())
    for words in (f"base_url={SERVER}/chat/completions", "--tasks labkit_cases", "--fewshot_as_multiturn"):
        assert words in command
    assert "`latency_ms` of latency_01" in text(tmp_path / "README.md")


def test_the_exported_function_gives_the_verdict_of_the_checks(tmp_path):
    write_lm_eval(exported([case("refuses"), case("latency_ms<9", case_id="b")]), tmp_path)
    names = {}
    exec(compile(text(tmp_path / "labkit_checks.py"), "labkit_checks", "exec"), names)
    (row,) = [json.loads(line) for line in text(tmp_path / "format.jsonl").splitlines()]
    assert names["process_results"](row, ["I cannot."]) == {"passed": 1.0}
    assert names["process_results"](row, ["Sure."]) == {"passed": 0.0}
    assert "`b`: nothing but its latency was to be judged" in text(tmp_path / "README.md")


# The command


def test_the_command_writes_the_files_and_asks_nothing(tmp_path):
    out = tmp_path / "out"
    words = ["eval", "--export", "promptfoo", "--out", str(out), "--base-url", "http://127.0.0.1:9", "--model", "m"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "promptfoo@latest eval" in done.output
    provider = yaml.safe_load(text(out / "promptfooconfig.yaml"))["providers"][0]
    assert (provider["id"], provider["config"]["apiBaseUrl"]) == ("openai:chat:m", "http://127.0.0.1:9/v1")
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "prompt.json", "promptfooconfig.yaml"]


def test_an_export_that_makes_no_sense_is_refused(tmp_path):
    for words, message in (
        (["--export", "excel", "--out", str(tmp_path)], "there is no export for 'excel'"),
        (["--export", "lm-eval"], "there is no folder to export to"),
    ):
        assert message in str(CliRunner().invoke(app, ["eval", *words]).exception)
    (tmp_path / "file").write_text("x")
    with pytest.raises(LabError, match=r"could not write promptfooconfig\.yaml"):
        write_promptfoo(exported(load_cases()[:1]), tmp_path / "file")
