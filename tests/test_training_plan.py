"""Sizes, minutes, batch sizes, precision and speed: the numbers of a run, given, derived or measured."""

import math
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from labkit.errors import LabError
from labkit.evidence import read_json
from labkit.gpt2 import GPT2, GPT2Config
from labkit.training import loop, precision, speed
from labkit.training.data import TokenData, read_tokens, token_file
from labkit.training.log import trace_line
from labkit.training.loop import Trainer, train
from labkit.training.mini_gpt2 import train_mini_gpt2
from labkit.training.optimizer import EagerAdamW
from labkit.training.parallel import World
from labkit.training.plan import (
    EVALUATION_STEPS,
    MODEL_FIELDS,
    MiniRun,
    as_interrupted,
    check_run,
    measured,
    settings_of,
)
from labkit.training.run_files import RUN_FOLDER, repeat_command
from labkit.training.settings import TrainSettings
from labkit.training.sizes import SIZES
from labkit.training.tokens import train_bpe

DATA = TokenData(torch.arange(400).numpy().astype("uint16") % 50)
SMALL = GPT2Config(vocab_size=50, block_size=16, n_layer=1, n_head=2, n_embd=16)


def small_model() -> GPT2:
    torch.manual_seed(0)
    return GPT2(SMALL)


def test_a_size_sets_everything_and_a_field_can_be_set_alone():
    assert MiniRun.of_size("mini") == MiniRun()
    run = MiniRun.of_size("small", steps=7, batch_size=None)
    assert (run.n_layer, run.batch_size, run.steps) == (8, SIZES["small"].batch_size, 7)
    with pytest.raises(LabError, match="no size called 'huge'"):
        MiniRun.of_size("huge")


def test_sizes_follow_their_rules():
    for name, size in SIZES.items():
        head = 64 if name == "gpt2-124m" else 32
        assert size.n_embd == head * size.n_head
        if name != "gpt2-124m":
            assert (size.n_embd, size.block_size) == (32 * size.n_layer, size.n_embd // 2)
            assert size.learning_rate == pytest.approx(4e-3 * 128 / size.n_embd)


def test_gpt2_124m_has_the_published_number_of_parameters():
    size = SIZES["gpt2-124m"]
    with torch.device("meta"):
        model = GPT2(GPT2Config(size.vocab_size, size.block_size, size.n_layer, size.n_head, size.n_embd))
    assert sum(p.numel() for p in model.parameters()) == 124_439_808


def test_minutes_become_steps_from_the_measured_speed():
    run = MiniRun(minutes=2, batch_size=10, block_size=50)
    found = measured(run, lambda _: 1000.0)
    assert found.steps == 240 - EVALUATION_STEPS  # 2 minutes, 1,000 tokens a second, 500 tokens a step
    assert settings_of(found).warmup_steps == 21
    assert as_interrupted(run, steps=77, batch_size=3) == replace(run, steps=77)
    assert as_interrupted(replace(run, minutes=0), steps=77, batch_size=3).steps == run.steps
    with pytest.raises(LabError, match="several processes cannot measure"):
        check_run(run, "cpu", World(0, 2))


def test_the_batch_grows_while_it_pays():
    speeds = {4: 100, 8: 180, 16: 240, 32: 245, 64: 1000}
    assert measured(MiniRun(batch_size=0), lambda run: speeds[run.batch_size]).batch_size == 16


def test_the_batch_stops_where_memory_does():
    def speed_of(run: MiniRun) -> float:
        if run.batch_size > 8:
            raise LabError("does not fit", "")
        return run.batch_size * 100.0

    assert measured(MiniRun(batch_size=0), speed_of).batch_size == 8


def test_minutes_and_auto_work_for_real(tmp_path):
    run = MiniRun.of_size("tiny", minutes=0.02, batch_size=0)
    done = train_mini_gpt2(tmp_path, run, "cpu")
    assert done.rows[-1].step == done.run.steps
    report = read_json(tmp_path / RUN_FOLDER / "environment_report.json")
    assert report["batch_size"] == done.run.batch_size > 0
    command = repeat_command(done.run, "cpu")  # what was measured stands in it as a number
    assert f"--steps {done.run.steps} " in command
    assert f"--batch-size {done.run.batch_size} " in command
    assert "minutes" not in command


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 1}, "1 steps are too few"),
        ({"batch_size": -1}, "at least one batch"),
        ({"accumulate": 0}, "at least one batch"),
        ({"minutes": -1.0}, "no time to train"),
        ({"minutes": math.nan}, "no time to train"),
        ({"minutes": math.inf}, "no time to train"),
        ({"learning_rate": math.nan}, "no learning rate"),
        ({"learning_rate": -1.0}, "no learning rate"),
        ({"seed": -1}, "no seed"),
        ({"n_head": 3}, "cannot be shared by 3 heads"),
        ({"n_head": 0}, "0 is too small"),
        ({"n_layer": 0}, "0 is too small"),
        ({"n_embd": -4}, "-4 is too small"),
        ({"block_size": 0}, "0 is too small"),
        ({"vocab_size": 5}, "cannot hold all bytes"),
        ({"tokenizer": "words"}, "no tokenizer called 'words'"),
        ({"precision": "fp16"}, "needs a CUDA device"),
    ],
)
def test_numbers_that_make_no_run_are_named(change, message):
    with pytest.raises(LabError, match=message):
        check_run(replace(MiniRun(), **change), "cpu")


def test_accumulated_batches_make_the_step_of_one_large_batch():
    """Two batches of 4 give the mean gradient of 8 windows: the first step moves the weights as far."""
    settings = TrainSettings(steps=1, batch_size=4, block_size=16, accumulate=2, weight_decay=0.0, precision="fp32")
    parts = Trainer(small_model(), DATA, DATA, settings, "cpu")
    seen = [parts._batches.next() for _ in range(2)]
    parts.close()
    parts = Trainer(small_model(), DATA, DATA, settings, "cpu")
    whole = small_model()
    loop.loss_of(whole, torch.cat([x for x, _ in seen]), torch.cat([y for _, y in seen])).backward()
    for last in (False, True):
        parts._backward(last)
    parts.close()
    for mine, theirs in zip(parts.plain.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(1)
    model = GPT2(GPT2Config(vocab_size=5, block_size=4, n_layer=1, n_head=1, n_embd=4)).double()
    ids, targets = torch.randint(0, 5, (1, 4)), torch.randint(0, 5, (1, 4))
    names = [name for name, _ in model.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in model.parameters()]

    def loss(*weights):
        logits = torch.func.functional_call(model, dict(zip(names, weights, strict=True)), ids)
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    assert torch.autograd.gradcheck(loss, values)


def test_out_of_memory_names_the_batch_to_try(monkeypatch):
    def full(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(loop, "loss_of", full)
    with pytest.raises(LabError, match="a batch of 12 windows does not fit") as caught:
        Trainer(small_model(), DATA, DATA, TrainSettings(steps=2, block_size=16), "cpu").step()
    assert "--batch-size 6 --accumulate 2" in caught.value.next_step
    with pytest.raises(LabError, match="one window does not fit"):
        Trainer(small_model(), DATA, DATA, TrainSettings(steps=2, block_size=16, batch_size=1), "cpu").step()


def test_memory_that_runs_out_before_the_first_step_names_the_batch_too():
    """The held-out loss comes first, and is the first to need a whole batch."""
    trainer = Trainer(small_model(), DATA, DATA, TrainSettings(steps=2, block_size=16, batch_size=2), "cpu")

    def too_large(*_):
        raise MemoryError("Unable to allocate")

    trainer._held_out = SimpleNamespace(batch=too_large)
    with pytest.raises(LabError, match="a batch of 2 windows does not fit") as refused:
        trainer.run(lambda row: None, lambda trainer: None)
    assert "--batch-size 1 --accumulate 2" in refused.value.next_step


def test_other_errors_are_not_called_memory(monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(loop, "loss_of", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        Trainer(small_model(), DATA, DATA, TrainSettings(steps=2, block_size=16), "cpu").step()


def test_precision_has_a_reason(monkeypatch):
    assert "asked for" in precision.choose_precision("bf16").reason
    monkeypatch.setattr(precision, "cpu_flags", lambda: {"avx2"})
    assert precision.choose_precision().name == "fp32"
    monkeypatch.setattr(precision, "cpu_flags", lambda: {"avx2", "amx_bf16"})
    assert precision.choose_precision() == precision.Precision("bf16", "the processor has amx_bf16")
    for capability, name in (((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda capability=capability: capability)
        chosen = precision.choose_precision(device="cuda")
        assert (chosen.name, chosen.scaled) == (name, name == "fp16")
    assert precision.choose_precision(device="mps").name == "fp32"
    for wanted, message in (("fp8", "no precision called 'fp8'"), ("fp16", "needs a CUDA device")):
        with pytest.raises(LabError, match=message):
            precision.choose_precision(wanted, "cpu")


def test_processor_flags_are_read_where_linux_lists_them(tmp_path):
    listed = tmp_path / "cpuinfo"
    listed.write_text("model name: x\nflags\t\t: fpu avx2 amx_bf16\nFeatures : bf16\n")
    assert precision.cpu_flags(listed) == {"fpu", "avx2", "amx_bf16", "bf16"}
    assert precision.cpu_flags(tmp_path / "none") == set()


def test_a_bf16_run_learns_what_an_fp32_run_learns():
    settings = TrainSettings(steps=60, batch_size=4, block_size=16, warmup_steps=5, learning_rate=1e-2)
    losses = {
        name: train(small_model(), DATA, DATA, replace(settings, precision=name), "cpu")[-1].val_loss
        for name in ("fp32", "bf16")
    }
    assert losses["bf16"] == pytest.approx(losses["fp32"], abs=0.15)
    assert losses["bf16"] != losses["fp32"]


def test_flops_are_palms_formula_for_our_model_and_the_librarys():
    model = small_model()
    count = sum(p.numel() for p in model.parameters()) - 16 * 16
    assert speed.flops_per_token(model, 16) == 6 * count + 12 * 1 * 16 * 16
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64}
    config = LlamaConfig(**sizes, num_hidden_layers=2, num_attention_heads=2)
    llama = LlamaForCausalLM(config)
    count = sum(p.numel() for p in llama.parameters())
    assert speed.flops_per_token(llama, 8) == 6 * count + 12 * 2 * 32 * 8


def test_the_peak_is_known_by_the_gpus_own_name(monkeypatch):
    assert speed.peak_flops("cpu") is None
    known = {"NVIDIA A100-SXM4-80GB": 312e12, "Tesla T4": 65e12, "NVIDIA H200": 989.4e12}
    known |= {"NVIDIA H100 80GB HBM3": 989.4e12, "NVIDIA H100 PCIe": None, "NVIDIA Unknown 1": None}
    for name, peak in known.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=name: name)
        assert speed.peak_flops("cuda") == peak


def test_compiling_must_pay_within_the_run():
    assert not speed.worth_compiling("cpu", 10.0, 10_000)
    assert not speed.worth_compiling("cuda", 0.01, 500)
    assert speed.worth_compiling("cuda", 0.3, 5000)


@pytest.mark.parametrize("works", [True, False])
def test_a_run_that_pays_is_compiled_and_goes_on_where_no_compiler_works(monkeypatch, works):
    """At whatever step it began, and with the rows and losses of a run that is not compiled."""
    calls = []

    def compiler(model):
        def compiled(ids):
            calls.append(1)
            if not works:
                raise RuntimeError("no Triton")
            return model(ids)

        compiled.train = compiled.eval = lambda: model
        compiled.parameters = model.parameters
        return compiled

    settings = TrainSettings(steps=14, block_size=16, batch_size=2, log_every=10)
    plain = train(small_model(), DATA, DATA, settings, "cpu")
    monkeypatch.setattr(loop, "worth_compiling", lambda *_: True)
    monkeypatch.setattr(loop, "COMPILE_AFTER", 7)
    monkeypatch.setattr(torch, "compile", compiler)
    rows = train(small_model(), DATA, DATA, settings, "cpu")
    assert [row.train_loss for row in rows] == [row.train_loss for row in plain]
    assert len(calls) > 7 if works else len(calls) == 1


def test_tokens_are_kept_in_a_file_and_mapped(tmp_path, monkeypatch):
    from labkit.training import data

    monkeypatch.setattr(data, "STATE", tmp_path)
    tokenizer = train_bpe(["one two three"], 300)
    path = token_file(tokenizer, "one two")
    tokens = read_tokens(path)
    assert tokens.tolist() == tokenizer.encode("one two").ids
    assert Path(tokens.filename) == path
    stamp = path.stat().st_mtime_ns
    assert token_file(tokenizer, "one two") == path
    assert path.stat().st_mtime_ns == stamp
    assert token_file(tokenizer, "one three") != path
    path.write_bytes(b"no array")
    with pytest.raises(LabError, match="is not a token file"):
        read_tokens(path)


def test_the_run_can_be_repeated_from_its_readme(tmp_path):
    run = MiniRun.of_size("tiny", steps=4, batch_size=2)
    train_mini_gpt2(tmp_path, run, "cpu")
    readme = (tmp_path / "openllm_gpu_training_run" / "README.md").read_text(encoding="utf-8")
    said = dict(re.findall(r"--([\w-]+) (\S+)", re.search(r"Repeat it: (.*)", readme)[1]))
    fields = asdict(MiniRun()) | {key.replace("-", "_"): value for key, value in said.items()}
    assert all(str(fields[key]) == str(value) for key, value in asdict(run).items() if key != "text")
    assert repeat_command(MiniRun(text=Path("own.txt"), minutes=1), "cpu").endswith("--text own.txt")


def test_mfu_is_shown_only_where_the_peak_is_known():
    row = loop.LogRow(1, 2.0, 2.0, 1e-3, 1.0, 10.0, "", "cpu", 1.0)
    assert "MFU" not in trace_line(row)
    assert "MFU 45.2%" in trace_line(replace(row, mfu=0.452, device="cuda"))


@pytest.mark.parametrize(("size", "vocabulary"), [("tiny", 512), ("mini", 1024), ("mini", 60), ("small", 2048)])
def test_first_loss_is_that_of_even_belief(size, vocabulary):
    """For the sizes that people train, and for a vocabulary of characters."""
    torch.manual_seed(0)
    sizes = {name: getattr(SIZES[size], name) for name in MODEL_FIELDS}
    model = GPT2(GPT2Config(vocab_size=vocabulary, **sizes))
    inputs, targets = torch.randint(0, vocabulary, (2, 8, model.config.block_size))
    with torch.no_grad():
        assert loop.loss_of(model, inputs, targets).item() == pytest.approx(math.log(vocabulary), rel=0.05)


def test_the_optimizer_is_torchs_adamw():
    """Bit for bit, and a state of one is a state of the other."""
    weights = {}
    for kind in (torch.optim.AdamW, EagerAdamW):
        model = small_model()
        optimizer = kind(model.parameters(), lr=1e-2, fused=True)
        for number in range(4):
            if number == 2:
                held, optimizer = optimizer.state_dict(), torch.optim.AdamW(model.parameters(), fused=True)
                optimizer.load_state_dict(held)
            model(torch.arange(16).unsqueeze(0)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        weights[kind] = model.state_dict()
    for name, weight in weights[torch.optim.AdamW].items():
        assert torch.equal(weight, weights[EagerAdamW][name])


def test_a_run_with_a_snapshot_and_a_resume_never_loads_the_compiler(tmp_path):
    """It takes as long as the rest of the start, and a run on a CPU compiles nothing."""
    code = f"""
import contextlib, sys
from labkit.training.mini_gpt2 import train_mini_gpt2
from labkit.training.plan import MiniRun

def pull_the_plug(row):
    if row.step == 20:
        raise KeyboardInterrupt

run = MiniRun.of_size("tiny", steps=30)
with contextlib.suppress(KeyboardInterrupt):
    train_mini_gpt2({str(tmp_path)!r}, run, "cpu", on_row=pull_the_plug, snapshot_seconds=0.0)
steps = []
train_mini_gpt2({str(tmp_path)!r}, run, "cpu", on_row=lambda row: steps.append(row.step), resume=True)
assert steps[0] == 0 and steps[-1] == 30
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_steps_do_not_ask_the_kernel_for_memory_again_and_again():
    """Page faults a step, in a process of its own: without keep_freed_memory they are a thousand and more."""
    code = """
import resource, numpy as np
from labkit.gpt2 import GPT2, GPT2Config
from labkit.training.data import TokenData
from labkit.training.loop import Trainer
from labkit.training.settings import TrainSettings
data = TokenData(np.arange(5000, dtype=np.uint16) % 1024)
trainer = Trainer(GPT2(GPT2Config(vocab_size=1024)), data, data, TrainSettings(steps=99, precision="fp32"), "cpu")
for _ in range(10):
    trainer.step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    trainer.step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 10)
trainer.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 300
