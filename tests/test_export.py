"""Conversions: their cards, the check against their source, Olive's routes, and the strings of prompt templates."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_server import CHATML, make_tiny_model, make_tokenizer
from typer.testing import CliRunner

from labkit.cli.app import app
from labkit.edge import convert
from labkit.edge.decision import decide_export
from labkit.edge.fidelity import answers_of, compare_answers
from labkit.errors import LabError
from labkit.evaluation.cases import EVAL_CASES, load_cases
from labkit.evaluation.checks import Verdict
from labkit.evaluation.levers import plainly
from labkit.evaluation.runner import Result
from labkit.evaluation.targets import Reply, Target
from labkit.export import olive
from labkit.export.card import CARD, changed_files, read_export_card
from labkit.export.foundry import commands, inference_model, lay_out
from labkit.export.inference_model import INFERENCE_MODEL, check_inference_model
from labkit.export.onnx_folder import graph_facts, is_onnx_export
from labkit.export.prompt_template import PROBES, derive_template
from labkit.generation import Sampling, load_chat_model
from labkit.generation.chat_model import local_source

HELLO = [{"role": "user", "content": "hello there"}]


@pytest.fixture(scope="session")
def even_folder(tmp_path_factory):
    """Heads 16 wide and whole blocks of weights, which onnxruntime runs."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "even", hidden_size=64, intermediate_size=128)


@pytest.fixture(scope="session")
def exported(even_folder, tmp_path_factory):
    """An int4 and a 16-bit ONNX export of the tiny model, with their cards."""
    folder, cards = tmp_path_factory.mktemp("exports"), {}
    with convert.source_of(str(even_folder)) as source:
        for precision in ("int4", "fp16"):
            cards[precision] = convert.export_onnx(source, folder / precision, precision)
    return folder, cards


# The exports as models


def test_an_export_is_a_model_of_its_own_with_the_facts_of_its_graph(exported, even_folder):
    folder, _ = exported
    source = load_chat_model(str(even_folder), "cpu")
    half, int4 = (load_chat_model(str(folder / name)) for name in ("fp16", "int4"))
    assert (half.backend, half.dtype, int4.dtype) == ("onnx", "float16", "int4")
    assert half.backend_reason == "the model is an ONNX export"
    assert half.network.end_ids == source.network.end_ids
    assert half.parameter_count == source.parameter_count
    assert half.context_length == source.context_length
    assert int4.revision != half.revision != source.revision
    ids = list(range(2, 40))
    expected, found = (model.network.rows().join(ids) for model in (source, half))
    assert (expected - found).abs().max() < 0.02
    assert half.chat(HELLO, Sampling(max_tokens=8)).text == source.chat(HELLO, Sampling(max_tokens=8)).text


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"backend": "transformers"}, "int4 is an ONNX export"),
        ({"dtype": "int8"}, "has its number format"),
        ({"adapter": "x"}, "the backend onnx runs no adapters"),
    ],
)
def test_what_an_export_cannot_do_is_told(exported, how, message):
    with pytest.raises(LabError, match=message):
        load_chat_model(str(exported[0] / "int4"), **how)


def test_a_graph_that_gives_logits_for_every_token_is_run_too(exported, tmp_path, monkeypatch):
    """As Olive's are: the builder cuts them off only when it is told to."""
    from labkit.generation.onnx_network import _graph

    class Entry:
        def __init__(self, name, kind="tensor(float)", shape=()):
            self.name, self.type, self.shape = name, kind, shape

    decoder = json.loads((exported[0] / "int4" / "genai_config.json").read_text())["model"]["decoder"]
    layers = range(decoder["num_hidden_layers"])
    memory = [Entry(f"past_key_values.{n}.{half}") for n in layers for half in ("key", "value")]

    class Session:
        def get_inputs(self):
            return [Entry("input_ids", "tensor(int64)"), Entry("attention_mask", "tensor(int64)"), *memory]

        def get_outputs(self):
            return [Entry("logits", shape=["batch_size", "sequence_length", 160])]

    assert _graph(Session(), decoder).every_place
    memory.append(Entry("position_ids", "tensor(int64)"))
    with pytest.raises(LabError, match="asks for attention_mask, input_ids, position_ids"):
        _graph(Session(), decoder)


# The card


def test_the_card_names_source_tools_command_and_every_file(exported, even_folder):
    folder, cards = exported
    card = read_export_card(folder / "int4")
    assert card == cards["int4"]
    assert card.source.files.keys() == {"model.safetensors"}
    assert (card.kind, card.precision, card.tool, card.adapter, card.check) == ("onnx", "int4", "builder", None, None)
    assert "--precision int4" in card.command
    assert str(even_folder.parent) not in json.dumps(card.files) + card.command
    assert card.versions["onnxruntime-genai"][0].isdigit()
    assert changed_files(folder / "int4", card) == []
    assert card.bytes == sum(f.stat().st_size for f in (folder / "int4").iterdir() if f.name != CARD)


def test_a_changed_file_and_a_folder_without_a_card_are_told(exported, tmp_path):
    _, cards = exported
    (tmp_path / "model.onnx").write_bytes(b"other")
    assert changed_files(tmp_path, cards["int4"]) == sorted(cards["int4"].files)
    with pytest.raises(LabError, match=r"export\.json is missing"):
        read_export_card(tmp_path)
    (tmp_path / CARD).write_text('{"kind": "onnx"}')
    with pytest.raises(LabError, match=r"lacks precision, tool"):
        read_export_card(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["onnx", "somebody/model", "--out", "new"], "is not on this machine"),
        (["onnx", "--precision", "int3", "--out", "new"], "no precision 'int3'"),
        (["onnx", "--tool", "magic", "--out", "new"], "no tool 'magic'"),
        (["onnx", "--limit", "20", "--out", "new"], "no share of the cases"),
        (["gguf", "--quant", "Q9", "--out", "new"], "no quantization 'Q9'"),
        (["gguf", "--quant", "F16", "--out", "."], "is not empty"),
        (["gguf", "--quant", "F16", "--out", "there/new"], "nothing can be written into the folder new"),
        (["onnx", "--out", "there/new"], "nothing can be written into the folder new"),
        (["onnx", "--adapter", "absent", "--out", "new"], "is no adapter"),
        (["onnx", "--tool", "olive", "--precision", "INT8", "--out", "new"], "is not asked for int8 here"),
        (["gguf", "--quant", "F16", "--cases", "absent.csv", "--out", "new"], "absent.csv"),
        (["foundry", "absent", "--out", "new"], "is no ONNX export"),
    ],
)
def test_bad_input_is_an_error_with_its_reason(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").write_text("")
    done = CliRunner().invoke(app, ["export", *arguments])
    assert isinstance(done.exception, LabError)
    assert message in done.exception.what
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "broken holds no tokenizer"),
        (lambda folder: (folder / "model.safetensors").unlink(), "broken holds no weights"),
        (lambda folder: os.truncate(folder / "model.safetensors", 4000), "broken could not be read: Error while"),
    ],
)
def test_a_broken_checkpoint_is_told_and_leaves_no_folder(spoil, message, even_folder, tmp_path):
    spoil(shutil.copytree(even_folder, tmp_path / "broken"))
    run = ["export", "gguf", str(tmp_path / "broken"), "--quant", "F16", "--out", str(tmp_path / "new")]
    done = CliRunner().invoke(app, run)
    assert isinstance(done.exception, LabError)
    assert message in done.exception.what
    assert not (tmp_path / "new").exists()


def test_a_file_that_fails_half_way_is_named_and_leaves_no_folder(even_folder, tmp_path, monkeypatch):
    (tmp_path / "there").write_text("")
    monkeypatch.setattr("labkit.export.gguf.write_gguf", lambda *_: (tmp_path / "there" / "part").mkdir())
    run = ["export", "gguf", str(even_folder), "--quant", "F16", "--out", str(tmp_path / "new")]
    done = CliRunner().invoke(app, run)
    assert isinstance(done.exception, LabError)
    assert done.exception.what == "the export into new was ended at part: Not a directory"
    assert not (tmp_path / "new").exists()


def test_the_folder_of_a_gguf_export_is_a_model_as_an_onnx_one_is(even_folder, tmp_path):
    with convert.source_of(str(even_folder)) as source:
        convert.export_gguf(source, tmp_path / "half", "f16")
    file = tmp_path / "half" / "even-F16.gguf"
    assert local_source(str(tmp_path / "half")) == convert.artifact_of(tmp_path / "half") == file
    with (
        pytest.raises(LabError, match=r"even-F16\.gguf is an export already"),
        convert.source_of(str(tmp_path / "half")),
    ):
        pass
    shutil.copy(file, tmp_path / "half" / "other.gguf")
    with pytest.raises(LabError, match=r"half holds 2 GGUF files: even-F16\.gguf, other\.gguf"):
        load_chat_model(str(tmp_path / "half"))


def test_a_damaged_export_is_told_with_its_remedy(exported, tmp_path, capfd):
    folder = shutil.copytree(exported[0] / "int4", tmp_path / "damaged")
    (folder / "model.onnx.data").write_bytes(b"x")
    with pytest.raises(LabError, match=r"cannot load model\.onnx: 1 : FAIL") as caught:
        load_chat_model(str(folder))
    assert "make the export again" in caught.value.next_step
    assert capfd.readouterr().err == ""


# The check against the source


def test_a_machine_that_is_slow_for_a_moment_breaks_no_case():
    """Two runs of one model, the second within none of the cases' limits of time."""
    timed = [case for case in load_cases() if "latency_ms<" in case.check]

    def run(latency):
        reply = Reply("The refund is paid within 5 working days. [POL-01]", latency, 1, 1)
        return answers_of(Target("m", "r", "cpu", "float32", lambda asked, sampling: reply), timed)

    fast, slow = run(1.0), run(60_000.0)
    found = compare_answers(fast, slow)
    assert (found.broken, found.fixed, found.differing) == ((), (), ())
    assert 0 < found.passed < len(timed)
    assert not [result for result in slow if "latency" in result.case.check]


def answered(texts, passed=None):
    cases = load_cases()[: len(texts)]
    return [
        Result(case, Reply(text, 1.0, 1, 1), Verdict(good, "", ""), plainly("x"))
        for case, text, good in zip(cases, texts, passed or [True] * len(texts), strict=True)
    ]


def test_answers_that_differ_are_counted_beside_the_verdicts_and_too_many_are_flagged():
    before = answered(["a", "b", "c", "d"], [True, True, False, True])
    found = compare_answers(before, answered(["a", "B", "C", "d"], [True, False, True, True]), limit=0.5)
    names = [result.case.case_id for result in before]
    assert (found.differing, found.broken, found.fixed) == ((names[1], names[2]), (names[1],), (names[2],))
    assert (found.share, found.flagged, found.source_passed, found.passed) == (0.5, False, 3, 3)
    stricter = compare_answers(before, answered(["a", "B", "C", "d"]), limit=0.49)
    assert stricter.flagged
    assert "2 of 4 answers differ from the source's (50%, more than the 49%" in stricter.sentence
    with pytest.raises(LabError, match="not asked the same cases"):
        compare_answers(before, answered(["a"]))


def test_a_flagged_export_ends_the_command_with_1_and_its_card_says_so(exported, even_folder, tmp_path, monkeypatch):
    """The random model's int4 answers are not those of its source. It was exported before."""
    folder, cards = exported

    def export_again(source, out, *_):
        shutil.copytree(folder / "int4", out)
        return cards["int4"]

    monkeypatch.setattr(convert, "export_onnx", export_again)
    cases = tmp_path / "cases.csv"
    lines = EVAL_CASES.read_text().splitlines()
    cases.write_text("\n".join(lines[:4]) + "\n")
    monkeypatch.setattr("labkit.edge.fidelity.DECODING", Sampling(max_tokens=16))
    out = tmp_path / "out"
    run = ["export", "onnx", str(even_folder), "--cases", str(cases), "--limit", "0", "--out", str(out)]
    done = CliRunner().invoke(app, run)
    check = read_export_card(out).check
    assert (done.exit_code, check["flagged"], check["cases"]) == (1, True, 3)
    assert f"{len(check['answers_differ'])} of 3 answers differ" in done.output


def test_the_smallest_export_that_kept_its_answers_is_chosen():
    def card(kind, size, flagged=False, **more):
        check = {"flagged": flagged, "share": 0.3, "limit": 0.2, "answers_differ": ["x"], "cases": 10, "broken": []}
        return {"kind": kind, "precision": "int4", "files": {"f": {"bytes": size}}, "check": check} | more

    exports = [card("onnx", 5_000_000), card("gguf", 3_000_000, flagged=True)]
    exports += [{"kind": "gguf", "precision": "F16", "not_run": "no llama.cpp"}, card("other", 1, check=None)]
    found = decide_export(exports)
    assert found.choice == "onnx int4"
    assert found.reason == "the smallest that is not flagged: 5.0 MB, 1 of 10 answers differ, 0 broken"
    assert found.refused == {
        "gguf int4": "flagged: 30% of its answers differ, 20% are allowed",
        "gguf F16": "not run: no llama.cpp",
        "other int4": "its answers were not compared with the source's",
    }
    assert decide_export(exports[1:]).choice == "source"


def test_a_package_that_gguf_needs_is_named(even_folder, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "labkit.export.gguf", raising=False)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with (
        pytest.raises(LabError, match="gguf is not installed") as caught,
        convert.source_of(str(even_folder)) as source,
    ):
        convert.export_gguf(source, tmp_path / "out")
    assert caught.value.next_step == "`pip install gguf`"


# Olive


def test_the_commands_of_olives_two_routes():
    model, out = Path("models/mine"), Path("made")
    assert olive.olive_arguments(model, out, "int4") == [
        *("capture-onnx-graph", "--model_name_or_path", "models/mine", "--use_model_builder"),
        *("--precision", "int4", "--output_path", "made"),
    ]
    config = olive.olive_config(model, out, Path("cache"), "float32")
    assert config["passes"] == {"builder": {"type": "ModelBuilder", "precision": "fp32"}}
    assert config["input_model"] == {"type": "HfModel", "model_path": "models/mine"}
    assert (config["cache_dir"], config["output_dir"]) == ("cache", "made")
    assert config["systems"][config["target"]]["accelerators"][0]["execution_providers"] == ["CPUExecutionProvider"]


def test_without_a_network_the_environment_is_told_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(olive, "STATE", tmp_path)
    monkeypatch.setattr(olive, "PACKAGES", ("olive-ai==0.13.0",))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        LabError, match=r"olive-ai==0\.13\.0 could not be installed .* No matching distribution"
    ) as caught:
        olive.make_environment()
    assert "--tool builder" in caught.value.next_step
    assert str(tmp_path) not in str(caught.value)
    assert list((tmp_path / "olive").iterdir()) == []


def test_olive_is_called_offline_and_its_export_is_found_at_any_depth(tmp_path, monkeypatch, even_folder):
    calls = []

    def call(command, failed, folder=None):
        calls.append(command)
        made = Path(command[-1]) / "deep" if "capture-onnx-graph" in command else Path(folder) / "made"
        made.mkdir(parents=True)
        for name in ("genai_config.json", "model.onnx", "model_config.json"):
            (made / name).write_text("{}")

    monkeypatch.setattr(olive, "make_environment", lambda: tmp_path / "environment")
    monkeypatch.setattr(olive, "_call", call)
    for route in olive.ROUTES:
        olive.export_with_olive(even_folder, tmp_path / route, "int4", route)
        assert sorted(path.name for path in (tmp_path / route).iterdir()) == ["genai_config.json", "model.onnx"]
    assert [command[1] for command in calls] == ["capture-onnx-graph", "run"]
    assert {Path(command[0]).stem for command in calls} == {"olive"}
    with pytest.raises(LabError, match="not asked for int8"):
        olive.export_with_olive(even_folder, tmp_path / "no", "int8", "olive")


def test_what_olive_says_when_it_fails_is_told(monkeypatch):
    done = subprocess.CompletedProcess([], 1, "working\n", "Traceback\nValueError: no such pass\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **how: done)
    with pytest.raises(LabError, match="could not convert x: ValueError: no such pass"):
        olive._call(["olive"], "Olive could not convert x")


WATCHED = """#!{python}
import os, sys

def watch(event, given):
    if event in ("socket.getaddrinfo", "socket.connect"):
        print(event, given, file=open({said!r}, "a"))

sys.addaudithook(watch)
from olive.cli.launcher import main
main(sys.argv[1:])
"""


@pytest.mark.skipif(not olive.olive_ready(), reason="Olive's environment is not there: labkit export onnx --tool olive")
@pytest.mark.parametrize("tool", olive.ROUTES)
def test_olives_exports_of_the_embedded_model_generate_and_nothing_is_sent(tmp_path, monkeypatch, tool):
    watched, said = tmp_path / "olive", tmp_path / "said.txt"
    python = olive.environment_folder() / "bin" / "python"
    watched.write_text(WATCHED.format(python=python, said=str(said)))
    watched.chmod(0o755)
    monkeypatch.setattr(olive, "_program", lambda folder, name: watched)
    with convert.source_of("mini-instruct") as source:
        card = convert.export_onnx(source, tmp_path / "out", "int4", tool)
    assert not said.exists()
    assert {name: card.versions[f"olive environment: {name}"] for name in ("olive-ai", "onnxruntime-genai")} == {
        "olive-ai": "0.13.0",
        "onnxruntime-genai": "0.14.1",
    }
    model = load_chat_model(str(tmp_path / "out"))
    assert (model.dtype, model.chat(HELLO, Sampling(max_tokens=4)).completion_tokens) == ("int4", 4)


# Prompt templates. Written for these tests with the markers that each family has published.

LLAMA_3 = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
QWEN = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    + CHATML
)
MISTRAL = (
    "<s>{% for m in messages %}{% if m['role'] == 'user' %}[INST] "
    "{% if loop.last and messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}\n\n{% endif %}"
    "{{ m['content'] }}[/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)
PHI = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
PHI_FIRST = (
    "<s>{% for m in messages %}{% if m['role'] == 'user' %}<|user|>\n{{ m['content'] }}<|end|>\n<|assistant|>\n"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] }}<|end|>\n{% endif %}{% endfor %}"
)
GEMMA = (
    "<bos>{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
FAMILIES = {
    "chatml": (CHATML, True),
    "qwen": (QWEN, True),
    "llama-3": (LLAMA_3, True),
    "mistral": (MISTRAL, False),
    "phi": (PHI, True),
    "phi-3 of April 2024": (PHI_FIRST, False),
    "gemma": (GEMMA, False),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_strings_of_a_family_write_every_chat_as_its_template_does(family):
    text, has_system = FAMILIES[family]
    tokenizer = make_tokenizer(text)
    found = derive_template(tokenizer)
    assert (found.system is not None) == has_system
    for probe in PROBES:
        if probe[0]["role"] == "system" and not has_system:
            with pytest.raises(LabError, match="no place for a system message"):
                found.render(probe)
            continue
        rendered = tokenizer.apply_chat_template(list(probe), tokenize=False, add_generation_prompt=True)
        assert found.render(probe) == rendered


def test_the_strings_are_those_that_the_families_publish():
    chatml, llama = (derive_template(make_tokenizer(FAMILIES[name][0])) for name in ("chatml", "llama-3"))
    assert chatml.as_dict() == {
        "system": "<|im_start|>system\n{Content}<|im_end|>\n",
        "user": "<|im_start|>user\n{Content}<|im_end|>\n",
        "assistant": "<|im_start|>assistant\n{Content}<|im_end|>\n",
        "prompt": "<|im_start|>user\n{Content}<|im_end|>\n<|im_start|>assistant\n",
    }
    assert llama.prompt.startswith("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{Content}<|eot_id|>")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, "no chat template"),
        ("{{ messages | length }} {% for m in messages %}{{ m['content'] }}{% endfor %}", "an earlier turn is written"),
        (
            "{% for m in messages %}{{ loop.index }}: {{ m['content'] }}\n{% endfor %}",
            "first question is written otherwise",
        ),
        ("{% for m in messages %}{{ m['content'] | upper }}\n{% endfor %}", "stands in it changed"),
        ("{% for m in messages %}<{{ m['content'] | replace('\n', ' ') }}>{% endfor %}", "a chat comes out otherwise"),
    ],
)
def test_a_template_that_strings_cannot_say_is_refused(template, reason):
    with pytest.raises(LabError, match=reason):
        derive_template(make_tokenizer(template))


# inference_model.json


def test_an_export_is_laid_out_for_foundry_local(exported, tmp_path):
    export = exported[0] / "int4"
    made = inference_model(export, "mini-int4", "a test", "1.2")
    search = json.loads((export / "genai_config.json").read_text())["search"]
    assert made["ModelConfig"] == {key: search[key] for key in made["ModelConfig"]}
    folder = lay_out(export, tmp_path, made, "me")
    assert folder == tmp_path / "me" / "mini-int4"
    assert is_onnx_export(folder)
    assert json.loads((folder / INFERENCE_MODEL).read_text()) == made
    assert changed_files(folder, read_export_card(folder)) == []
    assert graph_facts(folder).dtype == "int4"
    with pytest.raises(LabError, match="me/mini-int4 is there already"):
        lay_out(export, tmp_path, made, "me")
    for publisher in ("../up", "", "a/b"):
        with pytest.raises(LabError, match="no name for a publisher's folder"):
            lay_out(export, tmp_path, made, publisher)
    (tmp_path / "file").write_text("")
    with pytest.raises(LabError, match="me/mini-int4 could not be written: Not a directory"):
        lay_out(export, tmp_path / "file", made, "me")
    told = commands(tmp_path, "mini-int4")
    assert all("not run here" in title for title in told)
    assert [f"foundry cache cd {tmp_path}", "foundry cache ls", "foundry model run mini-int4"] in told.values()
    assert ["foundry model list", "foundry run mini-int4"] in told.values()


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"Name": "a/b"}, "Name"),
        ({"Version": "one"}, "Version"),
        ({"PromptTemplate": {"prompt": "x", "user": "{Content}", "assistant": "{Content}"}}, "PromptTemplate/prompt"),
        ({"ModelConfig": {"max_length": 0}}, "ModelConfig"),
        ({"Extra": 1}, "the whole file"),
    ],
)
def test_what_the_schema_refuses_is_told_with_its_field(change, place):
    turns = dict.fromkeys(("prompt", "user", "assistant"), "{Content}")
    config = {"max_length": 64, "temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0}
    good = {"Name": "m", "Description": "d", "Version": "1", "PromptTemplate": turns, "ModelConfig": config}
    check_inference_model(good)
    with pytest.raises(LabError, match=rf"inference_model\.json, {place}"):
        check_inference_model(good | change)
