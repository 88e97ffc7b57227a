"""The memory of training against what torch really keeps, and against published counts."""

import json
import warnings
from itertools import accumulate

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from labkit.errors import LabError
from labkit.landscape.configs import model_at
from labkit.landscape.models import find_model, load_models
from labkit.landscape.saved_activations import LORA_TARGETS, logits_bytes, saved_bytes
from labkit.landscape.training_memory import (
    LLAMA_LIKE,
    PRECISIONS,
    TrainingPlan,
    copied_bytes,
    trainable_parameters,
    training_memory,
    training_step,
)

BATCH, CONTEXT = 2, 64
SHAPES = {
    "grouped": LlamaConfig(
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=320,
        vocab_size=1000,
        tie_word_embeddings=True,
    ),
    "wide heads": LlamaConfig(
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        intermediate_size=256,
        vocab_size=500,
        tie_word_embeddings=False,
    ),
}


def in_four_bits(model):
    """`model` with the linears of its layers in nf4 with double quantization, the head left as it is."""
    import bitsandbytes as bnb

    for name, linear in list(model.named_modules()):
        if not isinstance(linear, torch.nn.Linear) or name == "lm_head":
            continue
        packed = bnb.nn.Linear4bit(
            linear.in_features, linear.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4"
        )
        packed.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, packed.to("cpu"))
    return model


def to_train(config, mode, precision, dropout, targets=LORA_TARGETS):
    """A model of random weights as a training loop has it: adapters of rank 8, or everything trained."""
    from peft import LoraConfig, get_peft_model

    from labkit.generation.torchao import without_old_torchao

    without_old_torchao()
    torch.manual_seed(0)
    config.use_cache = False
    model = LlamaForCausalLM(config).to(torch.float32 if mode == "full" and precision != "bf16" else torch.bfloat16)
    if mode == "qlora":
        model = in_four_bits(model)
    if mode != "full":
        adapter = LoraConfig(r=8, lora_dropout=dropout, target_modules=list(targets))
        model = get_peft_model(model, adapter, autocast_adapter_dtype=precision != "bf16")
    return model.train()


def kept_by_torch(config, mode, precision, dropout, targets=LORA_TARGETS):
    """Bytes of the storages that autograd keeps of one step, each once, without the parameters."""
    model = to_train(config, mode, precision, dropout, targets)
    owned = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    ids = torch.randint(0, config.vocab_size, (BATCH, CONTEXT))
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "mixed"),
        warnings.catch_warnings(action="ignore"),
    ):
        model(input_ids=ids, labels=ids)
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in owned)


def peak_of_torch(config, plan):
    """The most bytes that one step, forward and backward, had allocated at once on top of the model."""
    model = to_train(config, plan.mode, plan.precision, plan.dropout)
    if plan.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(0, config.vocab_size, (BATCH, CONTEXT))

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=plan.precision == "mixed"):
            output = model(input_ids=ids, labels=ids)
        loss = output.loss
        if not plan.keeps_logits:
            del output
        loss.backward()
        model.zero_grad(set_to_none=True)

    with warnings.catch_warnings(action="ignore"):
        step()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
            step()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(accumulate(sizes))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("mode", "precision", "dropout", "targets"),
    [
        ("lora", "fp32", 0.05, LORA_TARGETS),
        ("lora", "bf16", 0.0, LORA_TARGETS),
        ("lora", "mixed", 0.05, LORA_TARGETS),
        ("lora", "fp32", 0.0, ("q_proj", "v_proj", "down_proj")),
        ("qlora", "bf16", 0.05, LORA_TARGETS),
        ("full", "bf16", 0.0, ()),
        ("full", "mixed", 0.0, ()),
    ],
)
def test_activations_are_what_torch_keeps(tmp_path, shape, mode, precision, dropout, targets):
    config = SHAPES[shape]
    config.save_pretrained(tmp_path)
    model = model_at(str(tmp_path))
    plan = TrainingPlan(
        mode,
        context=CONTEXT,
        batch=BATCH,
        rank=8,
        dropout=dropout,
        targets=targets or LORA_TARGETS,
        precision=precision,
    )
    step, form = on_cpu(plan), PRECISIONS[precision]
    counted = saved_bytes(model, step) + logits_bytes(model, step) + copied_bytes(model, plan, form)
    assert counted == pytest.approx(kept_by_torch(config, mode, precision, dropout, targets), rel=0.01)


def on_cpu(plan):
    """The step on a CPU, which keeps a dropout mask as numbers of the adapter's type; CUDA keeps booleans."""
    quant, widths = "" if plan.mode == "full" else "bf16", {"bf16": 2, "fp32": 4, "mixed": 4}
    return training_step(plan, quant, PRECISIONS[plan.precision], mask_bytes=widths[plan.precision])


@pytest.mark.parametrize(
    ("mode", "precision", "dropout", "options"),
    [
        ("lora", "fp32", 0.0, {}),
        ("qlora", "bf16", 0.0, {"keeps_logits": True}),
        ("full", "mixed", 0.0, {}),
        ("lora", "fp32", 0.0, {"checkpointing": True}),
    ],
)
def test_the_peak_of_a_step_is_the_moment_of_the_loss(tmp_path, mode, precision, dropout, options):
    config = LlamaConfig(**SHAPES["grouped"].to_dict() | {"vocab_size": 3000})
    config.save_pretrained(tmp_path)
    plan = TrainingPlan(mode, precision=precision, context=CONTEXT, batch=BATCH, rank=8, dropout=dropout, **options)
    found = training_memory(str(tmp_path), plan)
    resident = found.weights + found.adapter + found.optimizer
    assert found.torch_peak - resident == pytest.approx(peak_of_torch(config, plan), rel=0.01)


@pytest.mark.parametrize(("mode", "checkpointing"), [("lora", True), ("lora", False)])
def test_with_a_small_vocabulary_a_layers_backward_pass_bounds_the_peak(tmp_path, mode, checkpointing):
    config = LlamaConfig(**SHAPES["grouped"].to_dict() | {"vocab_size": 64})
    config.save_pretrained(tmp_path)
    plan = TrainingPlan(
        mode,
        precision="bf16",
        context=CONTEXT,
        batch=BATCH,
        rank=8,
        dropout=0.0,
        checkpointing=checkpointing,
    )
    found = training_memory(str(tmp_path), plan)
    resident = found.weights + found.adapter + found.optimizer
    assert max(found.moments, key=lambda moment: moment[1])[0] == "a layer's backward pass"
    assert 1 <= (found.torch_peak - resident) / peak_of_torch(config, plan) < 1.5  # an upper bound, not a count


@pytest.mark.parametrize(
    ("model", "targets", "trained"),
    [
        ("Meta-Llama-3.1-8B-Instruct", LORA_TARGETS, 41_943_040),
        ("Meta-Llama-3.1-8B-Instruct", ("q_proj", "v_proj"), 6_815_744),
        ("Llama-3.2-1B-Instruct", LORA_TARGETS, 11_272_192),
    ],
)
def test_trainable_parameters_of_published_shapes(model, targets, trained):
    assert trainable_parameters(find_model(model), TrainingPlan("lora", targets=targets)) == trained


def test_every_intermediate_size_gives_the_published_number_of_parameters():
    rows = [row for row in load_models() if row.intermediate_size and row.model_type in LLAMA_LIKE]
    assert len(rows) > 20
    for row in rows:
        attention = 2 * row.hidden_size * row.head_dim * (row.n_heads + row.n_kv_heads)
        tables = row.vocab * row.hidden_size * (1 if row.tied_embeddings else 2)
        counted = tables + row.layers * (attention + 3 * row.hidden_size * row.intermediate_size)
        assert counted / 1e9 == pytest.approx(row.params_total_b, rel=3e-3), row.repo_id


@pytest.mark.parametrize(
    "name", ["pythia-1.4b", "Mixtral-8x7B-Instruct-v0.1", "Qwen2.5-VL-7B-Instruct", "gemma-2-9b-it"]
)
def test_training_another_kind_of_block_is_verify_and_never_a_guess(name):
    estimate = training_memory(name, TrainingPlan("lora"))
    assert (estimate.status, estimate.total, estimate.as_dict()["total_gb"]) == ("verify", None, None)


def test_the_moments_move_as_they_should():
    def peak(mode="qlora", **options):
        return dict(training_memory("Llama-3.2-1B-Instruct", TrainingPlan(mode, **options)).moments)

    plain, loss = peak(), "the loss"
    assert peak(keeps_logits=True)[loss] - plain[loss] == 2 * 4 * 512 * 128_256
    assert peak(accumulate=4)[loss] - plain[loss] == 4 * 11_272_192
    assert peak(checkpointing=True)[loss] < plain[loss] - 4e9
    assert peak(batch=8)[loss] > 1.7 * plain[loss]
    full = peak("full", precision="bf16-master")  # 16-bit weights and gradients, fp32 master, two moments: 16 bytes
    assert full["the optimizer's step"] == pytest.approx(1.236e9 * (16 + 4))
    assert peak("full", quant="BF16") == peak("full", precision="bf16") != peak("full")


def test_json_has_each_part_in_both_units_and_unknown_layouts_say_verify():
    found = json.loads(json.dumps(training_memory("Llama-3.2-1B-Instruct", TrainingPlan("lora")).as_dict()))
    for part in ("weights", "adapter", "gradients", "optimizer", "activations", "logits", "overhead", "total"):
        assert found[f"{part}_gb"] / found[f"{part}_gib"] == pytest.approx(2**30 / 10**9, rel=0.01)
    assert found["total_gib"] == pytest.approx(found["torch_peak_gib"] + found["overhead_gib"], abs=1e-3)
    assert found["trainable_parameters"] == 11_272_192
    unknown = training_memory("Mixtral-8x7B-Instruct-v0.1", TrainingPlan("lora")).as_dict()
    assert (unknown["total_gb"], unknown["status"]) == (None, "verify")


@pytest.mark.parametrize(
    ("mode", "options", "said"),
    [
        ("dpo", {}, "no mode called 'dpo'"),
        ("qlora", {"quant": "bf16"}, "choose one of nf4, nf4-dq"),
        ("lora", {"quant": "nf4"}, "cannot be trained by lora"),
        ("lora", {"precision": "bf16-master"}, "none for lora"),
        ("lora", {"quant": "fp32", "precision": "mixed"}, "not counted"),
        ("full", {"quant": "bf16", "precision": "mixed"}, "leave --quant out|has no bf16 weights"),
        ("lora", {"rank": 0}, "rank is 0"),
        ("lora", {"dropout": 1.0}, "dropout is 1.0"),
        ("lora", {"targets": ("c_attn",)}, "targets are c_attn"),
    ],
)
def test_what_does_not_go_together_is_refused(mode, options, said):
    with pytest.raises(LabError, match=said):
        training_memory("Llama-3.2-1B-Instruct", TrainingPlan(mode, **options))


def test_a_config_is_a_model(tmp_path):
    folder = tmp_path / "mine"
    SHAPES["grouped"].save_pretrained(folder)
    at_folder, at_file = model_at(str(folder)), model_at(str(folder / "config.json"))
    assert at_folder == at_file
    assert (at_folder.repo_id, at_folder.intermediate_size, at_folder.attention) == ("mine", 320, "gqa")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"num_local_experts": 8}))
    assert model_at(str(folder)).params_total_b is None
    (folder / "config.json").write_text(json.dumps(values | {"sliding_window": 256, "model_type": "mistral"}))
    assert (model_at(str(folder)).attention, model_at(str(folder)).window_layers) == ("sliding", 2)
    (folder / "config.json").write_text("not JSON")
    with pytest.raises(LabError, match="cannot be read"):
        model_at(str(folder))
    with pytest.raises(LabError, match=r"config\.json cannot be read"):
        model_at(str(tmp_path))


def test_a_repository_in_the_hub_cache_is_a_model(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    cached = tmp_path / "models--somebody--new"
    SHAPES["grouped"].save_pretrained(cached / "snapshots" / "abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    found = model_at("somebody/new")
    assert (found.repo_id, found.intermediate_size) == ("somebody/new", 320)
    with pytest.raises(LabError, match=r"hf download somebody/other config\.json"):
        model_at("somebody/other")
