"""`labkit lora`'s loop against the usual way: peft with transformers' Trainer, and on a GPU TRL's SFTTrainer.

    python benchmarks/lora.py --repeats 5                 the embedded model on this machine's CPU, two threads
    python benchmarks/lora.py --gpu                       a Llama of 1.2 billion random weights on a GPU: LoRA and QLoRA
    python benchmarks/lora.py --gpu --tiny --device cpu   the same script on a tiny shape, to see that it runs

Equal runs: the same chats in the same order, mask, batches, steps, number formats, rank, targets and optimizer, in
turns, each in a process of its own. Tokens are real ones, padding never counted; the first steps and the last one, in
which a loss is logged, are left out. Prints Markdown tables and writes benchmarks/results/lora.json.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from labkit.adaptation.lora.base import adapter_config, load_weights, tuning_precision, with_adapter
from labkit.adaptation.lora.chats import EncodedChat, Mixture
from labkit.adaptation.lora.packing import packed_model
from labkit.adaptation.lora.settings import LoraSettings
from labkit.adaptation.lora.trainer import ChatTrainer, train_settings
from labkit.environment import environment_report, peak_memory_mib
from labkit.layout import DATA, MODELS
from labkit.training.data import IGNORED

HERE = Path(__file__).resolve().parent
THREADS = 2
SKIPPED = 3  # first steps, in which memory is taken and kernels are chosen
PATIENCE = 90  # seconds for a process, loading included
# The shape of Llama 3.2 1B: https://huggingface.co/meta-llama/Llama-3.2-1B, as its config.json has been published.
ONE_B = {
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "vocab_size": 128256,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
TINY = ONE_B | {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 512,
}


@dataclass(frozen=True)
class Job:
    """One process: who trains which folder, on which chats, how. `lengths` is empty for the repository's own chats,
    else the bounds between which lengths are drawn; the last `scored` of each chat counts in the loss."""

    who: str
    model: str
    device: str
    quant: str
    steps: int
    batch_size: int
    accumulate: int
    dropout: float
    lengths: tuple[int, int] | tuple[()] = ()
    scored: float = 0.5

    @property
    def chats(self) -> str:
        if not self.lengths:
            return "the workbook's chats"
        low, high = self.lengths[0], self.lengths[1] - 1
        return f"{low if low == high else f'{low} to {high}'} tokens, {self.scored:.0%} scored"


@dataclass(frozen=True)
class Measured:
    """What a process measured. Memory in MiB: of the process on a CPU, of torch's allocator on a GPU."""

    who: str
    quant: str
    tokens_per_second: float
    steps: int
    peak_memory_mib: float
    peak_reserved_mib: float
    last_loss: float
    batches: str
    chats: str


def settings_of(job: Job) -> LoraSettings:
    return LoraSettings(
        quant=job.quant,
        steps=job.steps,
        batch_size=job.batch_size,
        accumulate=job.accumulate,
        dropout=job.dropout,
        log_every=job.steps,
        replay_share=0.0,
    )


def chats_of(job: Job) -> list[EncodedChat]:
    """The repository's chats as the embedded model's tokens, or random tokens with the second half scored."""
    if not job.lengths:
        from transformers import AutoTokenizer

        from labkit.adaptation.lora.chats import encode_all, load_chats

        chats = load_chats(DATA / "train.jsonl") + load_chats(DATA / "replay.jsonl")
        return encode_all(AutoTokenizer.from_pretrained(job.model), chats, 1024, "train.jsonl")
    rng = np.random.default_rng(13)
    lengths = rng.integers(*job.lengths, job.steps * job.batch_size * job.accumulate)
    return [
        EncodedChat(rng.integers(3, 500, length), np.arange(length) >= (1 - job.scored) * length) for length in lengths
    ]


def mixture_of(job: Job) -> Mixture:
    return Mixture(chats_of(job), (), 0.0, 13, job.batch_size * job.accumulate)


class Watch:
    """The time after each step; steps from SKIPPED to the last but one count."""

    def __init__(self, job: Job, mixture: Mixture):
        self._job, self._mixture = job, mixture
        self._times: list[float] = []

    def step(self) -> None:
        if self._job.device == "cuda":
            torch.cuda.synchronize()
        self._times.append(time.perf_counter())

    def measured(self, loss: float, batches: str) -> Measured:
        last = len(self._times) - 1
        tokens = sum(sum(map(len, self._mixture.step(at))) for at in range(SKIPPED, last))
        seconds = self._times[last - 1] - self._times[SKIPPED - 1]
        cuda = self._job.device == "cuda"
        peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else peak_memory_mib()
        reserved = torch.cuda.max_memory_reserved() / 2**20 if cuda else 0.0
        speed, steps = round(tokens / seconds, 1), len(self._times)
        memory = (round(peak, 1), round(reserved, 1))
        return Measured(self._job.who, self._job.quant, speed, steps, *memory, round(loss, 4), batches, self._job.chats)


def train_ours(job: Job) -> Measured:
    settings, mixture = settings_of(job), mixture_of(job)
    precision = tuning_precision("auto", job.device)
    network = load_weights(job.model, settings, job.device, precision)
    watch = Watch(job, mixture)
    with packed_model(network) as packed:
        tuned = with_adapter(network, settings)
        numbers = train_settings(settings, mixture, 1024, precision.name)
        loop = ChatTrainer(tuned, mixture, mixture.chats[:1], settings, numbers, job.device, packed)
        rows = loop.run(lambda row: None, lambda trainer: watch.step())
    return watch.measured(rows[-1].train_loss, "packed" if packed else "padded")


def train_theirs(job: Job) -> Measured:
    """The script that one finds in most tutorials: from_pretrained, get_peft_model, Trainer, padded batches."""
    from peft import get_peft_model, prepare_model_for_kbit_training

    settings, mixture = settings_of(job), mixture_of(job)
    precision = tuning_precision("auto", job.device)
    network = load_weights(job.model, settings, job.device, precision)
    if job.quant != "none":
        network = prepare_model_for_kbit_training(network, use_gradient_checkpointing=False)
    torch.manual_seed(settings.seed)
    config = adapter_config(network.config, settings)
    watch = Watch(job, mixture)
    with tempfile.TemporaryDirectory() as folder:
        make = _sft_trainer if job.who == "trl" else _plain_trainer
        trainer = make(get_peft_model(network, config), job, precision.name, mixture, folder, _callback(watch))
        loss = trainer.train().training_loss
    return watch.measured(loss, "padded")


def _callback(watch: Watch):
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        def on_step_end(self, *_, **__):
            watch.step()

    return Steps()


def _arguments(job: Job, precision: str, folder: str) -> dict:
    return {
        "output_dir": folder,
        "max_steps": job.steps,
        "per_device_train_batch_size": job.batch_size,
        "gradient_accumulation_steps": job.accumulate,
        "learning_rate": 2e-4,
        "weight_decay": 0.0,
        "logging_steps": job.steps,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential",
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "use_cpu": job.device == "cpu",
        "dataloader_pin_memory": job.device == "cuda",
    }


def _rows(job: Job, mixture: Mixture) -> list[dict]:
    chats = [chat for step in range(job.steps) for chat in mixture.step(step)]
    return [
        {"input_ids": chat.ids.tolist(), "labels": np.where(chat.scored, chat.ids, IGNORED).tolist()} for chat in chats
    ]


def _pad(rows: list[dict]) -> dict[str, torch.Tensor]:
    longest = max(len(row["input_ids"]) for row in rows)

    def filled(name: str, filler: int) -> torch.Tensor:
        return torch.tensor([row[name] + [filler] * (longest - len(row[name])) for row in rows])

    mask = torch.tensor([[at < len(row["input_ids"]) for at in range(longest)] for row in rows]).long()
    return {"input_ids": filled("input_ids", 0), "labels": filled("labels", IGNORED), "attention_mask": mask}


def _plain_trainer(model, job: Job, precision: str, mixture: Mixture, folder: str, callback):
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(remove_unused_columns=False, **_arguments(job, precision, folder))
    return Trainer(model, arguments, data_collator=_pad, train_dataset=_rows(job, mixture), callbacks=[callback])


def _sft_trainer(model, job: Job, precision: str, mixture: Mixture, folder: str, callback):
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(
        model,
        args=SFTConfig(max_length=None, **_arguments(job, precision, folder)),
        train_dataset=Dataset.from_list(_rows(job, mixture)),
        processing_class=AutoTokenizer.from_pretrained(MODELS / "mini-instruct"),
        callbacks=[callback],
    )


def run_process(job: Job) -> Measured | None:
    """`job` in a process of its own; None, with what it said, where it failed."""
    paths = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    if job.device == "cpu":
        environment |= {"OMP_NUM_THREADS": str(THREADS)}
    words = [sys.executable, str(Path(__file__).resolve()), "--job", json.dumps(asdict(job))]
    try:
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        print(f"{job.who} {job.quant}: not done after {PATIENCE} s", file=sys.stderr)
        return None
    if done.returncode:
        print(f"{job.who} {job.quant} failed:\n{done.stderr[-2000:]}", file=sys.stderr)
        return None
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def make_model(shape: dict, folder: Path, device: str) -> str:
    """A checkpoint of that shape with random weights, in bf16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(13)
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**shape)).to(torch.bfloat16)
    model.save_pretrained(folder)
    return str(folder)


def compare_on_cpu(repeats: int, steps: int, dropout: float) -> list[Measured]:
    ours = Job("labkit", str(MODELS / "mini-instruct"), "cpu", "none", steps, 4, 1, dropout)
    jobs = [ours, replace(ours, who="peft + Trainer")] * repeats
    return [done for job in jobs if (done := run_process(job))]


def compare_on_gpu(device: str, tiny: bool, repeats: int, steps: int) -> list[Measured]:
    peer = "trl" if importlib.util.find_spec("trl") and importlib.util.find_spec("datasets") else "peft + Trainer"
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(TINY if tiny else ONE_B, Path(folder), device)
        if device == "cuda":
            torch.cuda.empty_cache()
        ours = Job("labkit", model, device, "none", steps, 4, 1, 0.0, (24, 40) if tiny else (384, 640))
        jobs = [replace(ours, who=who, quant=quant) for quant in ("none", "nf4") for who in ("labkit", peer)]
        equal = {"lengths": (32, 33) if tiny else (512, 513), "scored": 1.0, "steps": 6}
        memory = [replace(ours, quant=quant, **equal) for quant in ("none", "nf4")]
        return [done for job in [*jobs * repeats, *memory] if (done := run_process(job))]


def table(runs: list[Measured]) -> str:
    """Medians and the spread (lowest to highest), and ours as a multiple of theirs on the same chats."""
    head = ("chats", "who", "base", "tokens/s", "spread", "peak MiB", "reserved MiB", "last loss", "batches")
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    medians: dict[tuple[str, str, str], float] = {}
    for chats, who, quant in dict.fromkeys((run.chats, run.who, run.quant) for run in runs):
        own = [run for run in runs if (run.chats, run.who, run.quant) == (chats, who, quant)]
        speeds = [run.tokens_per_second for run in own]
        medians[chats, quant, who] = statistics.median(speeds)
        memory, reserved = max(run.peak_memory_mib for run in own), max(run.peak_reserved_mib for run in own)
        spread = f"{min(speeds):,.0f} to {max(speeds):,.0f}"
        lines.append(
            f"| {chats} | {who} | {quant} | {medians[chats, quant, who]:,.0f} | {spread} | {memory:,.0f} "
            f"| {reserved:,.0f} | {own[-1].last_loss:.4f} | {own[-1].batches} |"
        )
    for chats, quant in dict.fromkeys((chats, quant) for chats, quant, _ in medians):
        named = {who: speed for (*where, who), speed in medians.items() if where == [chats, quant]}
        if len(named) == 2:
            ours, theirs = named.pop("labkit"), next(iter(named.items()))
            lines.append(f"\nlabkit with base {quant}: {ours / theirs[1]:.2f} times {theirs[0]} ({chats})")
    return "\n".join(lines)


def keep_results(part: str, runs: list[Measured], device: str) -> None:
    path = HERE / "results" / "lora.json"
    held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    held[part] = {"environment": environment_report(device).as_dict(), "runs": [asdict(run) for run in runs]}
    path.write_text(json.dumps(held, indent=2) + "\n", encoding="utf-8", newline="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24, help="of each run")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--gpu", action="store_true", help="a 1 B-class model: LoRA bf16 and QLoRA nf4")
    parser.add_argument("--device", default="cuda", help="of --gpu")
    parser.add_argument("--tiny", action="store_true", help="with --gpu: a tiny shape, results not kept")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        job = Job(**json.loads(options.job))
        if job.device == "cpu":
            torch.set_num_threads(THREADS)
        print(json.dumps(asdict(train_ours(job) if job.who == "labkit" else train_theirs(job))))
        return
    if options.gpu:
        runs = compare_on_gpu(options.device, options.tiny, options.repeats, options.steps)
    else:
        runs = compare_on_cpu(options.repeats, options.steps, options.dropout)
    print(table(runs))
    if not options.tiny:
        keep_results("gpu" if options.gpu else "cpu", runs, options.device if options.gpu else "cpu")


if __name__ == "__main__":
    main()
