"""Prompt variants: read strictly, laid out as turns of a conversation, named in every row of a run."""

import pytest
import yaml
from tiny_server import SMALL, live
from typer.testing import CliRunner

from labkit.adaptation.prompts import PromptVariant, find_prompt, prompt_names, read_prompt
from labkit.cli import app
from labkit.errors import LabError
from labkit.evaluation.cases import COLUMNS, load_cases
from labkit.evaluation.levers import PLAIN, Levers
from labkit.evidence import csv_text, read_csv, read_json
from labkit.layout import DATA

GOOD = {"name": "terse", "version": "1", "system": "Answer in one word."}


def written(path, values):
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
    return path


def test_the_messages_are_the_system_prompt_the_examples_and_the_question():
    variant = PromptVariant("v", "2", "Be brief.", (("One?", "1"), ("Two?", "2")))
    assert [(turn["role"], turn["content"]) for turn in variant.messages_for("Three?")] == [
        ("system", "Be brief."),
        ("user", "One?"),
        ("assistant", "1"),
        ("user", "Two?"),
        ("assistant", "2"),
        ("user", "Three?"),
    ]
    assert PromptVariant("v", "1", examples=(("a", "b"),)).messages_for("c")[0]["role"] == "user"
    assert variant.label == "v 2"


def test_the_shipped_variants_are_read_and_share_nothing_with_the_cases():
    assert {"desk", "label_by_example", "note_only"} <= set(prompt_names())
    prompts = {case.prompt for name in ("eval_cases.csv", "update_cases.csv") for case in load_cases(DATA / name)}
    for name in prompt_names():
        variant = find_prompt(name)
        assert variant.name == name
        assert not prompts & {user for user, _ in variant.examples}
    trained = yaml.safe_load((DATA / "corpus" / "grammar.yaml").read_text(encoding="utf-8"))["system"]
    assert find_prompt("desk").system in trained
    assert find_prompt("note_only").system in trained


def test_a_file_is_found_by_its_path_and_a_whole_number_is_a_version(tmp_path):
    path = written(tmp_path / "mine.yaml", {**GOOD, "version": 3, "examples": [{"user": "a", "assistant": "b"}]})
    assert find_prompt(str(path)) == PromptVariant("terse", "3", GOOD["system"], (("a", "b"),))
    with pytest.raises(LabError, match="there is no prompt called 'desks'") as caught:
        find_prompt("desks")
    assert "desk, label_by_example" in caught.value.next_step


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("- a", "mine.yaml holds no fields"),
        ("a: [", "mine.yaml is not readable YAML"),
        ({**GOOD, "sytem": "x"}, r"no such field \(mine.yaml, field sytem\)"),
        ({"version": "1", "system": "x"}, r"has no name \(mine.yaml\)"),
        ({"name": "a", "system": "x"}, r"has no version \(mine.yaml\)"),
        ({**GOOD, "version": 1.1}, r"1.1 is no text \(mine.yaml, field version\)"),
        ({**GOOD, "version": True}, r"True is no text \(mine.yaml, field version\)"),
        ({**GOOD, "name": " "}, r"must be one line of text \(mine.yaml, field name\)"),
        ({**GOOD, "system": ["x"]}, r"is no text \(mine.yaml, field system\)"),
        ({**GOOD, "system": ""}, r"changes nothing \(mine.yaml\)"),
        ({**GOOD, "examples": "a"}, r"must be a list .*\(mine.yaml, examples\)"),
        (
            {**GOOD, "examples": [{"user": "a"}]},
            r"user and assistant, and no other \(mine.yaml, field examples, number 1",
        ),
        ({**GOOD, "examples": [{"user": "a", "assistant": 1}]}, r"1 is no text .*number 1, assistant\)"),
        ({**GOOD, "examples": [{"user": "a", "assistant": ""}]}, r"empty text .*number 1\)"),
    ],
)
def test_a_bad_file_is_named_with_its_field(tmp_path, values, message):
    with pytest.raises(LabError, match=message):
        read_prompt(written(tmp_path / "mine.yaml", values))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(LabError, match=r"nowhere.yaml is missing"):
        find_prompt(str(tmp_path / "nowhere.yaml"))


def test_levers_decide_what_a_case_is_asked_and_name_themselves():
    form, noted = (next(case for case in load_cases() if case.case_id == name) for name in ("format_01", "citation_01"))
    assert PLAIN.asked(form).messages == ({"role": "user", "content": form.prompt},)
    assert (PLAIN.asked(form).schema, PLAIN.as_dict(), PLAIN.label, PLAIN.prompt_version) == (None, {}, "plain", "")
    levers = Levers(prompt=find_prompt("desk"), constrained=True)
    asked = levers.asked(noted)
    assert [turn["role"] for turn in asked.messages] == ["system", "user"]
    assert asked.messages[-1]["content"] == noted.full_prompt()
    assert asked.schema is None
    assert levers.asked(form).schema["required"][0] == "order_id"
    assert levers.label == "prompt desk 1 + schema"
    assert levers.as_dict()["prompt"] == {"name": "desk", "version": "1"}


def test_the_command_records_the_prompt_in_every_row(tiny_model, tmp_path):
    """Against a real server. The tiny model's prompt with a system text is longer by its tokens."""
    cases, pack = tmp_path / "cases.csv", tmp_path / "pack"
    given = [case.as_row() for case in load_cases() if case.case_id in ("regression_01", "safety_01")]
    cases.write_text(
        csv_text([row | {"context_id": "", "prompt": "Hello"} for row in given], COLUMNS), encoding="utf-8"
    )
    prompt = written(tmp_path / "terse.yaml", {**GOOD, "system": "Be brief"})
    with live(tiny_model, SMALL) as base_url:
        words = ["eval", "--base-url", base_url, "--cases", str(cases), "--max-tokens", "3", "--top-p", "0.9"]
        for more, out in (([], "plain"), (["--prompt", str(prompt)], "pack")):
            done = CliRunner().invoke(app, [*words, *more, "--out", str(tmp_path / out)])
            assert done.exit_code == 0, done.output
    plain, rows = read_csv(tmp_path / "plain" / "eval_results.csv"), read_csv(pack / "eval_results.csv")
    assert {row["prompt_version"] for row in rows} == {"terse 1"}
    assert {row["levers"] for row in rows} == {"prompt terse 1"}
    assert {(row["prompt_version"], row["levers"]) for row in plain} == {("", "plain")}
    assert {(row["max_tokens"], row["temperature"], row["top_p"]) for row in rows} == {("3", "0.0", "0.9")}
    assert all(int(new["prompt_tokens"]) > int(old["prompt_tokens"]) for new, old in zip(rows, plain, strict=True))
    assert read_json(pack / "eval_summary.json")["levers"] == {"prompt": {"name": "terse", "version": "1"}}
    compared = CliRunner().invoke(
        app, ["compare", str(tmp_path / "plain"), str(pack), "--plot", str(tmp_path / "a.png")]
    )
    assert "changed: prompt: none -> prompt terse 1" in compared.output
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_chat_puts_the_variant_before_the_question(tiny_model_folder, monkeypatch):
    from labkit.generation import ChatModel

    seen = []
    real = ChatModel.stream
    monkeypatch.setattr(
        ChatModel, "stream", lambda self, messages, *rest: seen.append(messages) or real(self, messages, *rest)
    )
    words = ["chat", "--model", str(tiny_model_folder), "--device", "cpu", "--prompt", "Hello", "--max-tokens", "2"]
    done = CliRunner().invoke(app, [*words, "--prompt-variant", "desk"])
    assert done.exit_code == 0, done.output
    assert [turn["role"] for turn in seen[0]] == ["system", "user"]
