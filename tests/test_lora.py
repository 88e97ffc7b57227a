"""Fine-tuning: the mask, the batches, the arithmetic, and what a run leaves; on models of two layers made here."""

import json
import shlex
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_resume import Killed
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, MambaConfig
from typer.testing import CliRunner

from labkit.adaptation.lora import run as lora_run
from labkit.adaptation.lora.base import (
    find_base,
    load_weights,
    lora_parameters,
    target_modules,
    tuning_precision,
    with_adapter,
)
from labkit.adaptation.lora.card import repeat_command
from labkit.adaptation.lora.chats import EncodedChat, Mixture, encode_chat, load_chats, split_held_out
from labkit.adaptation.lora.merge import adapter_base, merge_adapter
from labkit.adaptation.lora.packing import chat_loss, pack, packed_model
from labkit.adaptation.lora.run import Sources, tune
from labkit.adaptation.lora.settings import PRESETS, SEVEN, LoraSettings, preset
from labkit.adaptation.lora.trainer import ChatTrainer
from labkit.cli import app
from labkit.decisions import describe_checkpoint
from labkit.errors import LabError
from labkit.evidence import read_csv, read_json
from labkit.export.checkpoint import weights_revision
from labkit.generation.adapters import adapter_revision
from labkit.layout import ROOT

SETTINGS = LoraSettings(
    r=4, alpha=8, steps=6, batch_size=4, learning_rate=1e-2, log_every=2, precision="fp32", replay_share=0.25
)
LLAMA_8B = LlamaConfig(
    hidden_size=4096,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    intermediate_size=14336,
    vocab_size=128256,
    tie_word_embeddings=False,
)


def chat(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def write_chats(path, chats):
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in chats), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chats")
    learn = [chat("say " + "ab " * (n % 5 + 1), "AB" * (n % 4 + 1)) for n in range(20)]
    keep = [chat(f"keep {n}", f"kept {n}") for n in range(6)]
    return Sources(write_chats(folder / "learn.jsonl", learn), write_chats(folder / "keep.jsonl", keep))


@pytest.fixture(scope="module")
def finished(sources, tiny_model_folder, tmp_path_factory):
    """A whole run: its folder and its result."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, tune(sources, out, str(tiny_model_folder), SETTINGS, "cpu")


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder):
    return AutoTokenizer.from_pretrained(tiny_model_folder)


def random_chats(count, vocabulary=90):
    rng = np.random.default_rng(3)
    lengths = rng.integers(4, 15, count)
    return [EncodedChat(rng.integers(3, vocabulary, n), np.arange(n) >= n // 2) for n in lengths]


def test_published_shapes_give_the_published_count():
    counted = lora_parameters(LLAMA_8B, 16, SEVEN)
    assert (counted.trainable, counted.base, counted.together) == (41_943_040, 8_030_261_248, 8_072_204_288)


def test_only_the_assistants_words_and_their_end_are_scored(tokenizer):
    messages = [*chat("hello there", "yes"), *chat("and now", "no, never")]
    encoded = encode_chat(tokenizer, messages)
    said = tokenizer.decode(encoded.ids[encoded.scored])
    assert said == "yes<|im_end|>no, never<|im_end|>"


def test_generation_markers_and_rendered_beginnings_agree(tokenizer, tiny_model_folder):
    marked = AutoTokenizer.from_pretrained(tiny_model_folder)
    marked.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{% generation %}"
        "{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}"
        "{{ '\n' }}{% endfor %}"
    )
    messages = [*chat("hello there", "yes"), *chat("and now", "no, never")]
    ours, theirs = encode_chat(tokenizer, messages), encode_chat(marked, messages)
    assert ours.ids.tolist() == theirs.ids.tolist()
    assert ours.scored.tolist() == theirs.scored.tolist()


def test_a_template_that_rewrites_the_past_is_refused(tiny_model_folder):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(LabError, match="renders a chat's beginning otherwise"):
        encode_chat(tokenizer, chat("a", "b") + chat("c", "d"))


@pytest.mark.parametrize("config", ["llama", "gpt2"])
def test_packed_chats_have_the_loss_and_gradients_of_padded_ones(config):
    torch.manual_seed(0)
    configs = {
        "llama": LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=90,
        ),
        "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=90, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0),
    }
    model = AutoModelForCausalLM.from_config(configs[config])
    for chats in (random_chats(5), [random_chats(1)[0]] * 3):
        batch, grads = pack(chats, "cpu"), []
        with packed_model(model) as packed:
            assert packed
            grads.append(torch.autograd.grad(chat_loss(model, batch, packed=True), tuple(model.parameters())))
        grads.append(torch.autograd.grad(chat_loss(model, batch, packed=False), tuple(model.parameters())))
        for ours, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_recurrent_model_is_not_packed():
    config = MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=90, state_size=4)
    with packed_model(AutoModelForCausalLM.from_config(config)) as packed:
        assert not packed


def test_each_epoch_has_every_chat_once_and_its_share_of_replay():
    chats, again = random_chats(12), random_chats(8)
    mixture = Mixture(chats, again, share=0.25, seed=1, per_step=5)
    assert (mixture.replayed, mixture.steps_per_epoch) == (4, 4)
    for epoch in range(2):
        seen = [id(chat) for step in range(4) for chat in mixture.step(4 * epoch + step)]
        assert sorted(set(seen) & set(map(id, chats))) == sorted(map(id, chats))
        assert len(seen) == 16
    both = {id(chat) for step in range(8) for chat in mixture.step(step)}
    assert set(map(id, again)) <= both  # the file is gone through in turn


def test_held_out_chats_are_not_trained_on():
    chats = random_chats(20)
    train, held_out = split_held_out(chats, 0.2, seed=5)
    assert (len(train), len(held_out)) == (16, 4)
    assert not {id(c) for c in train} & {id(c) for c in held_out}
    with pytest.raises(LabError, match="too few"):
        split_held_out(chats[:1], 0.2, 5)


def test_a_run_learns_and_says_what_it_was_made_of(finished, tiny_model_folder, sources):
    out, done = finished
    log, card = read_csv(out / "training_log.csv"), read_json(out / "card.json")
    assert float(log[-1]["val_loss"]) < float(log[0]["val_loss"]) - 0.1
    assert [row["step"] for row in log] == ["0", "2", "4", "6"]
    assert card["files"]["data"]["chats"] == 20
    assert len(card["files"]["replay"]["sha256"]) == 64
    assert (
        card["trainable_parameters"]
        == done.trainable
        == sum(tensor.numel() for tensor in load_file(out / "adapter_model.safetensors").values())
    )
    assert card["batches"] == "packed"
    for text in (
        (out / "README.md").read_text(),
        (out / "card.json").read_text(),
        (out / "adapter_config.json").read_text(),
    ):
        assert str(tiny_model_folder.parent) not in text
        assert str(sources.data.parent) not in text


def test_the_cards_command_is_one_that_the_command_line_takes(finished):
    card = read_json(finished[0] / "card.json")
    asked = CliRunner().invoke(app, card["command"].split()[1:])
    assert asked.exception.what == "there is no file learn.jsonl"  # every option was taken; the file is elsewhere
    assert "--steps 6" in card["command"]
    assert "--replay keep.jsonl" in card["command"]


def test_the_cards_command_of_a_preset_asks_for_no_share_of_chats_that_are_not_there(finished, sources):
    given = replace(finished[1], sources=Sources(sources.data, held_out=sources.replay), settings=PRESETS["seed"])
    own = replace(given, settings=replace(PRESETS["seed"], replay_share=0.0))
    for done in (given, own):
        asked = CliRunner().invoke(app, shlex.split(repeat_command(done))[1:])
        assert asked.exception.what == "there is no file learn.jsonl"


def test_a_resumed_run_has_the_losses_and_weights_of_one_that_never_stopped(
    finished, sources, tiny_model_folder, tmp_path, monkeypatch
):
    honest = ChatTrainer.step

    def dying(trainer):
        if trainer.done == 3:
            raise Killed
        honest(trainer)

    with monkeypatch.context() as patched:
        patched.setattr(ChatTrainer, "step", dying)
        with pytest.raises(Killed):
            tune(sources, tmp_path, str(tiny_model_folder), SETTINGS, "cpu", snapshot_seconds=0)
    assert (tmp_path / lora_run.SNAPSHOT).stat().st_size < 200_000  # the adapter and its moments, not the base
    with pytest.raises(LabError, match="seed was 13 and is 14"):
        tune(sources, tmp_path, str(tiny_model_folder), replace(SETTINGS, seed=14), "cpu", resume=True)
    held = torch.load(tmp_path / lora_run.SNAPSHOT, weights_only=True)
    held["state"]["elapsed"] = 1000.0
    torch.save(held, tmp_path / lora_run.SNAPSHOT)
    again = tune(sources, tmp_path, str(tiny_model_folder), SETTINGS, "cpu", resume=True)
    assert again.seconds >= again.rows[-1].elapsed_seconds > 1000, "the time before the kill was trained too"
    assert [row.val_loss for row in again.rows] == [row.val_loss for row in finished[1].rows]
    mine, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path, finished[0]))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert not (tmp_path / lora_run.SNAPSHOT).exists()


def test_a_merged_adapter_is_a_checkpoint_with_the_tuned_models_logits(finished, tiny_model_folder, tmp_path):
    from peft import PeftModel

    out = merge_adapter(finished[0], tmp_path / "merged", str(tiny_model_folder))
    ids = torch.arange(3, 23)[None]
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    with torch.no_grad():
        before = base(ids).logits
        apart = PeftModel.from_pretrained(base, finished[0])(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(out)(ids).logits
    torch.testing.assert_close(merged, apart, rtol=1e-4, atol=1e-5)
    assert (merged - before).abs().max() > 0.05
    assert AutoTokenizer.from_pretrained(out).chat_template
    revision = adapter_revision(finished[0], weights_revision(tiny_model_folder))
    assert read_json(out / "card.json")["adapter_revision"] == revision
    assert describe_checkpoint(str(out)).made_from == f"{tiny_model_folder.name} at {revision}"


def test_an_adapter_of_other_weights_is_refused(finished, tiny_model_folder, tmp_path):
    other = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    torch.nn.init.zeros_(other.lm_head.weight)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(LabError, match="was trained on revision"):
        merge_adapter(finished[0], tmp_path / "merged", str(tmp_path / "other"))
    with pytest.raises(LabError, match="is no adapter"):
        merge_adapter(tmp_path / "other", tmp_path / "merged")


def test_a_run_that_gets_worse_stops_early_and_keeps_its_best_weights(sources, tiny_model_folder, tmp_path):
    wild = replace(SETTINGS, steps=40, log_every=1, learning_rate=0.3, patience=3, warmup_share=0.5)
    done = tune(sources, tmp_path, str(tiny_model_folder), wild, "cpu")
    losses = [row.val_loss for row in done.rows]
    assert done.rows[-1].step < 40
    assert done.kept_step == losses.index(min(losses)) == done.rows[-1].step - 3
    assert done.kept_loss == min(losses)


def test_full_fine_tuning_leaves_a_checkpoint(sources, tiny_model_folder, tmp_path):
    done = tune(sources, tmp_path / "full", str(tiny_model_folder), replace(SETTINGS, full=True, steps=2), "cpu")
    assert done.trainable == done.total
    AutoModelForCausalLM.from_pretrained(tmp_path / "full")
    with pytest.raises(LabError, match="holds a checkpoint already"):
        tune(sources, tmp_path / "full", str(tiny_model_folder), SETTINGS, "cpu")


@pytest.mark.parametrize("quant", ["nf4", "int8"])
def test_a_quantized_base_is_tuned(sources, tmp_path, tmp_path_factory, quant):
    from tiny_server import make_tiny_model

    base = make_tiny_model(tmp_path / "base", hidden_size=64, intermediate_size=64)
    done = tune(sources, tmp_path / "out", str(base), replace(SETTINGS, quant=quant), "cpu")
    assert done.rows[-1].val_loss < done.rows[0].val_loss
    assert "QLoRA" in (tmp_path / "out" / "README.md").read_text()
    assert "saves memory and no time" in (tmp_path / "out" / "README.md").read_text()


def test_gradients_flow_through_a_4_bit_base_after_a_pass_without_them(tmp_path):
    from tiny_server import make_tiny_model

    base = make_tiny_model(tmp_path / "base", hidden_size=64, intermediate_size=64)
    settings, ids = replace(SETTINGS, quant="nf4"), torch.arange(3, 19)[None]
    tuned = with_adapter(load_weights(base, settings, "cpu", tuning_precision("fp32", "cpu")), settings)

    def gradients():
        tuned.train()
        tuned.zero_grad()
        tuned(input_ids=ids, labels=ids).loss.backward()
        return {name: weight.grad for name, weight in tuned.named_parameters() if weight.grad is not None}

    before = gradients()
    tuned.eval()
    with torch.no_grad():  # as for the held-out loss
        tuned(input_ids=ids)
    after = gradients()
    assert any(grad.abs().max() > 1e-4 for name, grad in before.items() if "layers.0." in name)
    for name, grad in before.items():
        torch.testing.assert_close(after[name], grad, msg=lambda text, name=name: f"{name}: {text}")


def test_a_base_in_4_bits_is_loaded_without_asking_a_hub_for_kernels():
    """bitsandbytes tries as it is loaded, and says so where it cannot; what a hub has is no code to run here."""
    words = (
        "from labkit.adaptation.lora.base import find_base, load_weights, tuning_precision as precision\n"
        "from labkit.adaptation.lora.settings import preset\n"
        "load_weights(find_base('mini-instruct').source, preset('mini', quant='nf4'), 'cpu', precision('fp32', 'cpu'))"
    )
    done = subprocess.run([sys.executable, "-c", words], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, "kernels" in done.stderr) == (0, False), done.stderr


def test_a_folder_that_cannot_be_written_is_told_before_the_training(sources, tiny_model_folder, tmp_path):
    (tmp_path / "file").write_text("mine")
    rows = []
    for out, what in ((tmp_path / "file", "file is a file"), (tmp_path / "file" / "deep", "could not write deep")):
        with pytest.raises(LabError, match=what):
            tune(sources, out, str(tiny_model_folder), SETTINGS, "cpu", on_row=rows.append)
    with pytest.raises(LabError, match="--snapshot-seconds cannot be nan"):
        tune(sources, tmp_path / "out", str(tiny_model_folder), SETTINGS, "cpu", snapshot_seconds=float("nan"))
    assert rows == []
    assert (tmp_path / "file").read_text() == "mine"


def test_the_card_calls_the_base_as_a_decision_does_and_a_merge_finds_it(finished, tiny_model_folder, tmp_path):
    assert read_json(finished[0] / "card.json")["base_model"] == tiny_model_folder.name
    base = find_base("mini-instruct")
    assert (base.name, base.place) == ("mini-instruct", "data/models/mini-instruct")
    (tmp_path / "adapter_model.safetensors").touch()
    for called in ("mini-instruct", "data/models/mini-instruct"):  # as cards say it, and as they said it before
        (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base.place}))
        card = {"kind": "adapter", "base_model": called, "base_revision": base.revision}
        (tmp_path / "card.json").write_text(json.dumps(card))
        assert adapter_base(tmp_path).revision == base.revision
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(LabError, match="names no base"):
        adapter_base(tmp_path)


def test_a_merge_into_a_file_is_an_error(finished, tiny_model_folder, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LabError, match="file is a file"):
        merge_adapter(finished[0], tmp_path / "file", str(tiny_model_folder))
    with pytest.raises(LabError, match="could not write deep"):
        merge_adapter(finished[0], tmp_path / "file" / "deep", str(tiny_model_folder))


def test_trl_reaches_the_same_loss(finished, sources, tiny_model_folder, tmp_path):
    pytest.importorskip("trl")
    theirs = tune(sources, tmp_path, str(tiny_model_folder), SETTINGS, "cpu", trainer="trl")
    ours = finished[1]
    assert theirs.rows[0].val_loss == pytest.approx(ours.rows[0].val_loss, abs=1e-4)
    assert theirs.kept_loss == pytest.approx(ours.kept_loss, abs=0.02)
    assert ours.rows[0].val_loss - ours.kept_loss > 0.1  # what "the same" is to be held against


def test_without_trl_the_error_says_so(sources, tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(lora_run, "find_spec", lambda name: None)
    with pytest.raises(LabError, match="TRL is not installed"):
        tune(sources, tmp_path, str(tiny_model_folder), SETTINGS, "cpu", trainer="trl")


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ("", "is empty"),
        ('{"messages": [{"role": "user", "content": "a"}]}\n', "the assistant says nothing"),
        ('{"messages": [{"role": "robot", "content": "a"}]}\n', "needs a role"),
        ('{"messages": "hello"}\n', "not a list of turns"),
        ("nonsense\n", "line 1 of bad.jsonl is not a chat"),
    ],
)
def test_bad_chats_are_named(tmp_path, lines, what):
    (tmp_path / "bad.jsonl").write_text(lines)
    with pytest.raises(LabError, match=what):
        load_chats(tmp_path / "bad.jsonl")


def test_missing_files_long_chats_and_unknown_layers_are_errors(sources, tiny_model_folder, tmp_path):
    def refused(what, where=sources, **changes):
        with pytest.raises(LabError, match=what):
            tune(where, tmp_path, str(tiny_model_folder), replace(SETTINGS, **changes), "cpu")

    refused("there is no file none.jsonl", Sources(tmp_path / "none.jsonl"))
    refused(r"a chat has \d+ tokens, and 5 is the most", max_length=5)
    refused("no layer called wizard", targets=("q_proj", "wizard"))


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"r": 0}, "--r must be at least 1"),
        ({"dropout": 1.0}, "--dropout is a share"),
        ({"steps": -1}, "--steps must be 0 or more"),
        ({"learning_rate": 0.0}, "--learning-rate must be a number above 0"),
        ({"epochs": float("nan")}, "--epochs must be a number above 0, and is nan"),
        ({"epochs": float("inf")}, "--epochs must be a number above 0, and is inf"),
        ({"weight_decay": float("nan")}, "--weight-decay must be 0 or more"),
        ({"seed": -1}, "--seed must be from 0"),
        ({"targets": ("q_proj", "")}, "one of the --targets has no name"),
        ({"quant": "int3"}, "no quantization called 'int3'"),
        ({"quant": "nf4", "full": True}, "cannot be trained"),
    ],
)
def test_settings_that_cannot_be_are_refused(given, what):
    with pytest.raises(LabError, match=what):
        preset("mini", **given)


def test_the_preset_of_the_seed_is_its_recipe():
    seed = preset("seed")
    assert (seed.quant, seed.r, seed.alpha, seed.dropout, seed.targets) == ("nf4", 16, 32, 0.05, SEVEN)
    assert (seed.epochs, seed.batch_size, seed.accumulate, seed.learning_rate) == (3, 4, 4, 2e-4)
    assert seed.warmup_share == 0.03
    with pytest.raises(LabError, match="no preset called"):
        preset("big")


def test_targets_follow_the_architecture():
    assert target_modules(LLAMA_8B) == list(SEVEN)
    assert target_modules(GPT2Config()) == "all-linear"
    assert target_modules(LLAMA_8B, ("q_proj",)) == ["q_proj"]


def test_the_commands_tune_and_merge(sources, tiny_model_folder, tmp_path):
    base, out = str(tiny_model_folder), str(tmp_path / "adapter")
    options = ["--model", base, "--out", out, "--steps", "2", "--r", "2", "--targets", "q_proj, v_proj"]
    tuned = CliRunner().invoke(app, ["lora", str(sources.data), *options, "--device", "cpu"])
    assert tuned.exit_code == 0, tuned.output
    assert "held-out loss" in tuned.output
    assert set(read_json(tmp_path / "adapter" / "adapter_config.json")["target_modules"]) == {"q_proj", "v_proj"}
    merged = CliRunner().invoke(app, ["merge", out, "--out", str(tmp_path / "merged"), "--model", base])
    assert merged.output == "saved merged\n"
    refused = CliRunner().invoke(app, ["merge", out, "--out", str(tmp_path / "merged"), "--model", base])
    assert refused.exception.what == "the folder merged is not empty"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--replay-share", "0.5"], "--replay-share is of the chats of --replay, which is missing"),
        (["--held-out-share", "0.5", "--held-out", "chats.jsonl"], "so no share is kept"),
    ],
)
def test_a_share_of_nothing_is_refused(options, message, sources, tmp_path):
    done = CliRunner().invoke(app, ["lora", str(sources.data), "--out", str(tmp_path / "adapter"), *options])
    assert isinstance(done.exception, LabError)
    assert message in done.exception.what
    assert not (tmp_path / "adapter").exists()


def test_a_cpu_computes_in_fp32_unless_told():
    assert tuning_precision("auto", "cpu").name == "fp32"
    assert tuning_precision("bf16", "cpu").name == "bf16"
