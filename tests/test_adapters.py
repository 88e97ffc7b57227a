"""LoRA adapters beside a base: each row answers as peft alone would, in one pass and in one server."""

import json
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_server import HELLO, chat, live, refused
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from labkit.cli.app import app
from labkit.errors import LabError
from labkit.evaluation.levers import plainly
from labkit.evaluation.targets import endpoint_target
from labkit.evidence import read_json, sha256_of
from labkit.generation import Chat, Sampling, chat_together, load_chat_model
from labkit.generation.prefixes import Prefixes
from labkit.generation.torchao import without_old_torchao
from labkit.release import differences
from labkit.serving import runtimes
from labkit.serving.contract import Limits, ServerSettings, named_adapters

LIMITS = Limits(80, 40, 4096, 30, concurrency=6, queue=6)
NAMES = ("", "polite", "v1.2")


def make_adapter(base, folder, seed, spread=0.5, **config):
    """A LoRA adapter of random weights, large enough to change what the base says."""
    torch.manual_seed(seed)
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    targets = config.pop("target_modules", ["q_proj", "v_proj", "down_proj"])
    without_old_torchao()
    adapted = get_peft_model(network, LoraConfig(r=4, lora_alpha=8, target_modules=targets, **config))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, spread)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tiny_model_folder, tmp_path_factory):
    """Two adapters whose layers differ, so that a layer of the base may have one of them, both or none."""
    made = tmp_path_factory.mktemp("adapters")
    return {
        "polite": make_adapter(tiny_model_folder, made / "polite", 1),
        "v1.2": make_adapter(tiny_model_folder, made / "second", 2, target_modules=["q_proj", "o_proj"]),
    }


@pytest.fixture(scope="module")
def adapted(tiny_model_folder, folders):
    return load_chat_model(str(tiny_model_folder), device="cpu", adapters=folders)


@pytest.fixture(scope="module")
def alone(tiny_model_folder, folders):
    """The base, and each adapter on a base of its own, as peft loads it."""

    def base():
        return AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32).eval()

    return {"": base()} | {name: PeftModel.from_pretrained(base(), folder).eval() for name, folder in folders.items()}


@torch.inference_mode()
def expected(network, ids):
    return network(input_ids=torch.tensor([ids])).logits[0, -1]


def test_rows_of_adapters_and_base_that_join_and_leave_have_the_logits_of_peft_alone(adapted, alone):
    draw, batch, rows, wrong_ones = random.Random(1), adapted.network.rows(), [], 0
    beginning = draw.choices(range(2, 90), k=20)  # of every prompt: what is remembered of it is each adapter's own
    for turn in range(40):
        if len(rows) < 2 or (turn % 3 == 0 and len(rows) < 6):
            ids, name = beginning + draw.choices(range(2, 90), k=draw.randrange(1, 9)), draw.choice(NAMES)
            torch.testing.assert_close(batch.join(ids, adapter=name), expected(alone[name], ids), rtol=0, atol=1e-4)
            rows.append((name, ids))
        elif turn % 7 == 0:
            gone = draw.randrange(len(rows))
            batch.leave(gone)
            del rows[gone]
        tokens = draw.choices(range(2, 90), k=len(rows))
        rows = [(name, [*ids, token]) for (name, ids), token in zip(rows, tokens, strict=True)]
        for (name, ids), logits in zip(rows, batch.step(tokens), strict=True):
            torch.testing.assert_close(logits, expected(alone[name], ids), rtol=0, atol=1e-4)
            wrong_ones += any((logits - expected(alone[n], ids)).abs().max() > 1e-2 for n in NAMES if n != name)
    assert wrong_ones > 40


def test_a_beginning_that_one_adapter_read_is_nothing_to_another():
    kept, layers = Prefixes(), [(torch.ones(1, 1, 30, 4), torch.ones(1, 1, 30, 4))]
    kept.keep(list(range(30)), layers, "polite")
    assert kept.longest(list(range(30)), "polite")
    assert not kept.longest(list(range(30)))
    kept.keep(list(range(30)), layers)
    assert kept.longest(list(range(30)), "polite")


def test_after_a_pass_that_failed_the_next_row_has_its_own_adapter(adapted, alone):
    batch, ids = adapted.network.rows(), [7, 8, 9]
    for name in NAMES:
        batch.join(ids, adapter=name)
    with pytest.raises(IndexError):
        batch.step([10**6] * 3)
    rows = adapted.network.rows()
    torch.testing.assert_close(rows.join(ids, adapter="v1.2"), expected(alone["v1.2"], ids), rtol=0, atol=1e-4)
    torch.testing.assert_close(rows.join(ids), expected(alone[""], ids), rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def url(adapted):
    with live(adapted, LIMITS) as url:
        yield url


def greedy(network, model):
    ids = model.prompt_ids(HELLO)
    made = network.generate(input_ids=torch.tensor([ids]), max_new_tokens=20, do_sample=False)[0]
    return model.tokenizer.decode(made[len(ids) :], skip_special_tokens=True)


def test_a_server_answers_with_base_and_adapters_at_the_same_time(url, adapted, alone):
    names = {"": "tiny-llama"} | {name: name for name in NAMES[1:]}
    asked = [name for name in NAMES for _ in range(4)]
    random.Random(3).shuffle(asked)
    told = {name: greedy(alone[name], adapted) for name in NAMES}
    assert len(set(told.values())) == 3
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda name: chat(url, model=names[name], max_tokens=20, temperature=0).json(), asked))
    for name, answer in zip(asked, answers, strict=True):
        assert answer["choices"][0]["message"]["content"] == told[name]
        assert answer["model"] == names[name]
        assert answer["system_fingerprint"] == adapted.using(name).revision
    assert chat(url, max_tokens=20, temperature=0).json()["choices"][0]["message"]["content"] == told[""]


def test_the_server_names_its_adapters_and_refuses_any_other_model(url, adapted, folders):
    base = adapted.base_revision
    revisions = {
        name: f"{base}+{sha256_of(folder / 'adapter_model.safetensors')[:12]}" for name, folder in folders.items()
    }
    listed = httpx.get(f"{url}/v1/models").json()["data"]
    assert [card["id"] for card in listed] == ["tiny-llama", "polite", "v1.2"]
    assert httpx.get(f"{url}/v1/models/v1.2").json() == listed[2]
    for page in ("health", "contract"):
        assert httpx.get(f"{url}/{page}").json()["adapters"] == revisions
    text = refused(chat(url, model="rude"), 404, "model_not_found", "model")
    assert text == "the model 'rude' is not served here; this server has tiny-llama, polite, v1.2"
    refused(httpx.get(f"{url}/v1/models/rude"), 404, "model_not_found")
    document = httpx.get(f"{url}/openapi.json").json()
    names = document["components"]["schemas"]["ChatRequest"]["properties"]["model"]["anyOf"][0]["enum"]
    assert names == ["tiny-llama", "polite", "v1.2"]


def test_another_adapter_is_another_release(url):
    contract = httpx.get(f"{url}/contract").json()
    assert differences(contract, contract) == []
    other = contract | {"adapters": contract["adapters"] | {"polite": "else"}}
    assert differences(contract, other) == [f"adapters.polite is else instead of {contract['adapters']['polite']}"]


def test_an_evaluation_through_the_server_records_the_adapters_revision(url, adapted):
    target = endpoint_target(url, model="polite")
    assert (target.model, target.revision) == ("polite", adapted.using("polite").revision)
    assert target.ask(plainly("hello"), Sampling(max_tokens=2)).completion_tokens == 2


def test_one_adapter_answers_in_this_process(tiny_model_folder, folders, adapted, alone, tmp_path):
    model = load_chat_model(str(tiny_model_folder), device="cpu", backend="auto", adapter=str(folders["polite"]))
    assert (model.adapter, model.backend_reason) == ("polite", "an adapter is run by transformers and peft")
    assert model.revision == adapted.using("polite").revision != model.using("").revision == adapted.revision
    assert model.chat(HELLO, Sampling(max_tokens=20)).text == greedy(alone["polite"], adapted)
    assert model.using("").chat(HELLO, Sampling(max_tokens=20)).text == greedy(alone[""], adapted)
    assert model.parameter_count == adapted.parameter_count == alone[""].num_parameters()
    words = ["--model", str(tiny_model_folder), "--adapter", str(folders["polite"]), "--max-tokens", "20"]
    words += ["--prompt", HELLO[0]["content"], "--out", str(tmp_path / "pack")]
    done = CliRunner().invoke(app, ["chat", *words])
    assert done.output.strip() == greedy(alone["polite"], adapted).strip()
    first_run = (tmp_path / "pack" / "first_run.md").read_text()
    assert f"- Revision: {model.revision}\n- Adapter: polite\n" in first_run


def test_chats_that_are_decoded_together_have_the_adapter_too(adapted, alone):
    chats = [Chat(HELLO, Sampling(max_tokens=20))] * 3
    for name in NAMES:
        texts = {done.text for _, done in chat_together(adapted.using(name), chats, 2)}
        assert texts == {greedy(alone[name], adapted)}


@pytest.mark.parametrize("dtype", ["int8", "nf4"])
def test_an_adapter_lies_beside_quantized_weights(tiny_model_folder, folders, dtype):
    model = load_chat_model(str(tiny_model_folder), device="cpu", dtype=dtype, adapters=folders)
    base = load_chat_model(str(tiny_model_folder), device="cpu", dtype=dtype).network.model
    peft = PeftModel.from_pretrained(base, folders["polite"]).eval()
    rows, ids = model.network.rows(), [5, 6, 7]
    for name in NAMES:
        rows.join(ids, adapter=name)
    logits = rows.step([8, 8, 8])
    torch.testing.assert_close(logits[1], expected(peft, [*ids, 8]), rtol=0, atol=1e-2)
    assert (logits[0] - logits[1]).abs().max() > 0.1
    assert model.dtype == dtype


def test_options_of_a_model_here_are_not_for_one_behind_a_server():
    for option in (["--backend", "onnx"], ["--dtype", "nf4"], ["--device", "cpu"], ["--model", "mini-instruct"]):
        done = CliRunner().invoke(app, ["eval", "--base-url", "http://127.0.0.1:9", *option])
        assert done.exception.what == f"{option[0]} cannot be given together with --base-url"


def test_the_adapter_of_a_served_name_is_asked_for_and_recorded(url, adapted, tmp_path):
    case = {"case_id": "a", "prompt": "hello", "expected_behavior": "talks", "risk": "safety", "check": "min_words:1"}
    (tmp_path / "cases.jsonl").write_text(json.dumps(case) + "\n")
    words = ["--cases", str(tmp_path / "cases.jsonl"), "--base-url", url, "--adapter", "polite", "--max-tokens", "2"]
    done = CliRunner().invoke(app, ["eval", *words, "--out", str(tmp_path / "pack")])
    assert done.exit_code == 0, done.output
    summary = read_json(tmp_path / "pack" / "eval_summary.json")
    assert (summary["model"], summary["revision"]) == ("polite", adapted.using("polite").revision)


def spoiled(folder, out, name, **values):
    """A copy of the adapter in `folder` whose JSON file `name` has other values."""
    shutil.copytree(folder, out)
    file = out / name
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | values))
    return out


def refusal(base, **how):
    with pytest.raises(LabError) as caught:
        load_chat_model(str(base), device="cpu", **how)
    assert "/" not in caught.value.what.replace("base/", "")
    return caught.value.what


def test_an_adapter_of_another_base_is_refused(tiny_model_folder, tiny_model, folders, tmp_path):
    other = spoiled(folders["polite"], tmp_path / "other", "card.json", base_revision="0123456789ab")
    assert refusal(tiny_model_folder, adapter=other) == (
        f"the adapter other was made for the base revision 0123456789ab, and {tiny_model.revision} is loaded"
    )
    same = spoiled(folders["polite"], tmp_path / "same", "card.json", base_revision=tiny_model.revision)
    assert load_chat_model(str(tiny_model_folder), device="cpu", adapter=same).adapter == "same"


def test_an_adapter_of_another_shape_is_refused(tiny_model_folder, folders, tmp_path):
    wide = spoiled(folders["polite"], tmp_path / "wide", "adapter_config.json", r=6)
    assert "wide does not fit the base: " in refusal(tiny_model_folder, adapter=wide)
    more = spoiled(folders["polite"], tmp_path / "more", "adapter_config.json", target_modules=["q_proj", "k_proj"])
    assert "more does not fit the base: " in refusal(tiny_model_folder, adapter=more)
    none = spoiled(folders["polite"], tmp_path / "none", "adapter_config.json", target_modules=["c_attn"])
    assert "none does not fit the base: " in refusal(tiny_model_folder, adapter=none)
    (tmp_path / "more" / "adapter_model.safetensors").write_bytes(b"nothing")
    assert "more does not fit the base: " in refusal(tiny_model_folder, adapter=more)


def test_what_is_no_adapter_is_refused(tiny_model_folder, folders, tmp_path):
    assert refusal(tiny_model_folder, adapter=tiny_model_folder).startswith("tiny-llama is no adapter: ")
    assert refusal(tiny_model_folder, adapter=tmp_path / "absent").startswith("absent is no adapter: ")
    other = spoiled(folders["polite"], tmp_path / "ia3", "adapter_config.json", peft_type="IA3")
    assert "of the kind IA3" in refusal(tiny_model_folder, adapter=other)
    (other / "adapter_config.json").write_text("{")
    assert "adapter_config.json of the model ia3 cannot be read" in refusal(tiny_model_folder, adapter=other)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "bias=all"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
    ],
)
def test_what_cannot_share_its_base_is_not_served_beside_it(tiny_model_folder, folders, tmp_path, config, reason):
    other = spoiled(folders["polite"], tmp_path / "other", "adapter_config.json", **config)
    assert reason in refusal(tiny_model_folder, adapters={"other": other})


def test_only_transformers_runs_adapters(tiny_model_folder, folders, tmp_path):
    (tmp_path / "small.gguf").write_bytes(b"GGUF")
    assert refusal(tiny_model_folder, backend="onnx", adapter=folders["polite"]) == "the backend onnx runs no adapters"
    told = refusal(tmp_path / "small.gguf", adapter=folders["polite"])
    assert told == "the backend llama.cpp runs no adapters"


def test_names_of_adapters_are_checked(tiny_model_folder, folders, adapted):
    polite = folders["polite"]
    assert "both called tiny-llama" in refusal(tiny_model_folder, adapters={"tiny-llama": polite})
    assert "cannot be an adapter's name" in refusal(tiny_model_folder, adapters={"two words": polite})
    with pytest.raises(LabError, match="loaded without an adapter 'rude'"):
        adapted.using("rude")
    assert named_adapters(["a=one", "b=x=y"]) == (("a", "one"), ("b", "x=y"))
    for texts, what in ((["a"], "--adapter a is not NAME=PATH"), (["a=b", "a=c"], "two adapters are called a")):
        with pytest.raises(LabError, match=what):
            named_adapters(texts)
    assert runtimes._options(ServerSettings(adapters=(("a", "one"),)))[-1] == "--adapter=a=one"


def test_loading_peft_says_nothing_about_kernels_that_a_hub_would_have():
    words = (
        "from labkit.generation import load_chat_model\n"
        "try:\n    load_chat_model(adapter='nowhere')\nexcept Exception as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, timeout=120)
    assert (done.returncode, "kernels" in done.stderr) == (0, False), done.stderr
    assert "nowhere is no adapter" in done.stdout
