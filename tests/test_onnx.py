"""ONNX: exports made once, rows that have the logits of rows alone, and a backend that is chosen for a reason."""

import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny_server import chat, live, make_tiny_model

from labkit.endpoint import read_health
from labkit.errors import LabError
from labkit.evaluation.cases import load_cases
from labkit.export import onnx
from labkit.export.checkpoint import weights_revision
from labkit.generation import EMBEDDED, Sampling, load_chat_model
from labkit.generation.backends import Backend, choose_backend
from labkit.layout import DATA, MODELS, ROOT
from labkit.serving.contract import Limits

HELLO = [{"role": "user", "content": "How long do customers have to ask for a refund?"}]


@pytest.fixture(scope="module")
def int4():
    return load_chat_model(device="cpu", backend="auto")


# The network


def test_rows_that_come_and_go_have_the_logits_of_transformers(tmp_path):
    """120 random joins, steps and leaves, with shared beginnings and rows that outgrow their memory, against whole
    passes over each row."""
    folder = str(make_tiny_model(tmp_path / "tiny", head_dim=16, num_key_value_heads=2))
    network, reference = (load_chat_model(folder, "cpu", "float32", name).network for name in ("onnx", "transformers"))
    words, draw = range(2, network.vocabulary), random.Random(1)

    @torch.inference_mode()
    def alone(ids):
        return reference.model(input_ids=torch.tensor([ids])).logits[0, -1]

    batch, rows, beginning = network.rows(), [], draw.choices(words, k=124)
    for _ in range(120):
        if len(rows) < 5 and draw.random() < 0.4:
            rows.append(beginning[: draw.choice([5, 18, 124])] + draw.choices(words, k=draw.randrange(1, 9)))
            torch.testing.assert_close(batch.join(rows[-1]), alone(rows[-1]), atol=1e-4, rtol=1e-4)
        elif rows and draw.random() < 0.25:
            number = draw.randrange(len(rows))
            batch.leave(number)
            del rows[number]
        elif rows:
            rows = [[*row, draw.choice(words)] for row in rows]
            logits = batch.step([row[-1] for row in rows])
            torch.testing.assert_close(logits, torch.stack([alone(row) for row in rows]), atol=1e-4, rtol=1e-4)
    assert len(batch) == len(rows)
    assert max(map(len, rows)) > 128


def test_logits_that_were_given_stay_as_they_are(int4):
    rows = int4.network.rows()
    first = rows.join([5, 6, 7])
    kept = first.clone()
    rows.step([8])
    assert torch.equal(first, kept)


@torch.inference_mode()
def test_int4_keeps_the_beliefs_of_the_embedded_model(int4, embedded):
    """Along fp32's own answers. Plain 4-bit rounding has ten times this divergence (4.9e-4 over the held-out cases)."""
    divergence, alike = [], []
    for case in load_cases(DATA / "corpus" / "held_out_cases.csv")[::25]:
        ids = embedded.prompt_ids([{"role": "user", "content": case.full_prompt()}])
        one, other, token = embedded.network.rows(), int4.network.rows(), -1
        expected, found = one.join(ids), other.join(ids)
        while token not in embedded.network.end_ids:
            p, q = expected.log_softmax(-1), found.log_softmax(-1)
            divergence.append((p.exp() * (p - q)).sum().item())
            alike.append(int(p.argmax()) == int(q.argmax()))
            token = int(p.argmax())
            expected, found = one.step([token])[0], other.step([token])[0]
    assert len(alike) > 200
    assert sum(divergence) / len(divergence) < 2e-4
    assert sum(alike) / len(alike) >= 0.99


def test_the_onnx_backend_answers_as_the_reference_and_has_its_facts(int4, embedded):
    assert int4.chat(HELLO, Sampling(max_tokens=48)).text == embedded.chat(HELLO, Sampling(max_tokens=48)).text
    assert (int4.backend, int4.dtype, int4.device) == ("onnx", "int4", "cpu")
    assert int4.revision == embedded.revision == weights_revision(MODELS / EMBEDDED)
    for fact in ("context_length", "vocabulary", "parameter_count", "end_ids"):
        assert getattr(int4.network, fact) == getattr(embedded.network, fact), fact


def test_a_server_on_onnx_answers_several_at_once_and_says_what_runs_the_model(int4):
    with live(int4, Limits(concurrency=4)) as base_url:
        with ThreadPoolExecutor(4) as clients:
            words = ("refund", "travel", "holiday", "a form")
            asked = [[{"role": "user", "content": f"Tell me about {word}."}] for word in words]
            said = list(clients.map(lambda messages: chat(base_url, messages=messages, max_tokens=24).json(), asked))
        health = read_health(base_url)
    alone = [int4.chat(messages, Sampling(max_tokens=24)) for messages in asked]
    assert [answer["choices"][0]["message"]["content"] for answer in said] == [answer.text for answer in alone]
    assert (health["backend"], health["dtype"], health["device"]) == ("onnx", "int4", "cpu")
    assert health["backend_reason"] == int4.backend_reason
    assert "can be exported" in health["backend_reason"]


# The export


@pytest.fixture
def exports(tmp_path, monkeypatch):
    """A place of its own for exports, and what was exported into it, for a builder that takes no time."""
    made, together = [], threading.Barrier(2)

    def export(folder, out, precision):
        made.append(precision)
        out.mkdir()
        (out / onnx.GRAPH).write_bytes(b"graph")
        if precision == "float32":
            together.wait(10)

    monkeypatch.setattr(onnx, "STATE", tmp_path / "state")
    monkeypatch.setattr(onnx, "export_onnx", export)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder, made


def test_an_export_is_made_once_for_the_same_weights_and_precision(exports):
    folder, made = exports
    first = onnx.cached_onnx(folder, "int4")
    assert onnx.cached_onnx(folder, "int4") == first
    assert onnx.cached_onnx(folder, "int8") != first
    (folder / "model.safetensors").write_bytes(b"others")
    assert onnx.cached_onnx(folder, "int4") != first
    assert made == ["int4", "int8", "int4"]


def test_two_that_export_at_once_both_find_a_whole_one(exports):
    folder, made = exports
    found = []
    threads = [threading.Thread(target=lambda: found.append(onnx.cached_onnx(folder, "float32"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(made) == 2
    assert found[0] == found[1]
    assert (found[0] / onnx.GRAPH).read_bytes() == b"graph"
    assert list(found[0].parent.iterdir()) == [found[0]]


def test_a_builder_that_fails_is_an_error_with_its_reason(tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "BUILDER", "labkit.no_such_builder")
    with pytest.raises(LabError, match=r"tiny-llama could not be exported to ONNX: .*No module named") as caught:
        onnx.export_onnx(tiny_model_folder, tmp_path / "out", "int4")
    assert "--backend transformers" in caught.value.next_step
    assert str(ROOT) not in str(caught.value)


# The choice


def test_auto_falls_back_with_the_reason_and_onnx_by_name_does_not(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(onnx, "STATE", tmp_path / "file")
    chosen = load_chat_model(device="cpu", backend="auto")
    assert (chosen.backend, chosen.dtype) == ("transformers", "float32")
    assert "onnx was tried first, and the ONNX export of mini-instruct could not be kept" in chosen.backend_reason
    with pytest.raises(LabError, match="could not be kept: Not a directory"):
        load_chat_model(backend="onnx")


FOLDER = MODELS / EMBEDDED
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("source", "device", "dtype", "reason"),
    [
        (FOLDER, "cuda", "auto", "the device is cuda"),
        (None, "cpu", "auto", "only a checkpoint in a local folder"),
        (FOLDER, "cpu", "bfloat16", "bfloat16 is asked for"),
        ({"architectures": ["GPT2LMHeadModel"]}, "cpu", "auto", "the architecture GPT2LMHeadModel is not one of Llama"),
        ({}, "cpu", "auto", "names no architecture"),
        ({**LLAMA, "hidden_size": 48}, "cpu", "auto", "attention heads are 12 wide"),
        ({**LLAMA, "sliding_window": 24}, "cpu", "auto", "attention sees 24 tokens"),
        (LLAMA, "cpu", "auto", "holds no safetensors"),
    ],
)
def test_what_onnx_cannot_run_is_run_by_transformers_and_refused_by_name(source, device, dtype, reason, tmp_path):
    if isinstance(source, dict):
        (tmp_path / "config.json").write_text(json.dumps(source))
        source = tmp_path
    chosen = choose_backend("auto", source, device, dtype)
    assert chosen.name == "transformers"
    assert reason in chosen.reason
    with pytest.raises(LabError, match=f"backend onnx cannot run this model: .*{reason}"):
        choose_backend("onnx", source, device, dtype)


def test_nobody_waits_for_a_long_export_without_having_asked(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.truncate(3 * 10**9)
    assert choose_backend("auto", tmp_path, "cpu").name == "transformers"
    assert "3.0 GB of weights" in choose_backend("auto", tmp_path, "cpu").reason
    assert choose_backend("onnx", tmp_path, "cpu") == Backend("onnx", "asked for with --backend onnx")


def test_without_the_builder_auto_says_so_and_onnx_tells_how_to_install_it(monkeypatch):
    monkeypatch.setattr("labkit.generation.backends.builder_installed", lambda: False)
    assert choose_backend("auto", FOLDER, "cpu") == Backend("transformers", "onnxruntime-genai is not installed")
    with pytest.raises(LabError, match="onnxruntime-genai is not installed") as caught:
        choose_backend("onnx", FOLDER, "cpu")
    assert caught.value.next_step == "install it: pip install onnxruntime-genai onnx onnx-ir"


def test_a_backend_and_a_model_that_do_not_go_together_are_told(tmp_path):
    gguf = tmp_path / "small.gguf"
    gguf.write_bytes(b"GGUF")
    with pytest.raises(LabError, match="no backend called 'tensorrt'"):
        choose_backend("tensorrt", FOLDER, "cpu")
    with pytest.raises(LabError, match=r"small\.gguf is a GGUF file"):
        choose_backend("onnx", gguf, "cpu")
    with pytest.raises(LabError, match=r"llama\.cpp reads GGUF files"):
        choose_backend("llama.cpp", FOLDER, "cpu")
    with pytest.raises(LabError, match=r"no model file called absent\.gguf"):
        load_chat_model(str(tmp_path / "absent.gguf"))
