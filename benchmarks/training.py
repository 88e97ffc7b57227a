"""Mini GPT-2 training against nanoGPT: tokens per second, held-out loss, start-up, memory, and time to a loss.

nanoGPT is not shipped: clone it and say where it is.

    git clone https://github.com/karpathy/nanoGPT
    python benchmarks/training.py --nanogpt nanoGPT --repeats 5

Equal runs: the same shape, tokens, batch, steps and schedule for both, in turns, so that a machine that slows down
slows both. Race: each with its own settings (nanoGPT's are those of its README for a CPU) until the held-out loss is
under `--target`. Prints Markdown tables of medians and writes every run to benchmarks/results/training.json.
"""

import argparse
import importlib.util
import json
import os
import pickle
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from labkit.environment import environment_report
from labkit.training.plan import MiniRun, Prepared, prepare
from labkit.training.run_files import CHECKPOINT, RUN_FOLDER, load_mini_gpt2

HERE = Path(__file__).resolve().parent
THREADS = 2
DATASET = "labkit_benchmark"
NANO_STEP = re.compile(r"iter (\d+): loss [\d.]+, time ([\d.]+)ms")
NANO_LOSS = re.compile(r"step (\d+): train loss [\d.]+, val loss ([\d.]+)")
OUR_ROW = re.compile(r"step (\d+) \| .* held-out loss ([\d.]+) \| .* \| (\d+) tokens/s")
# The CPU run of nanoGPT's README, "quick start", seen 2026-11-21, but for the text, the length and the time of a look.
NANO_OWN = {"learning_rate": 1e-3, "lr_decay_iters": 2000, "min_lr": 1e-4, "beta2": 0.99, "warmup_iters": 100}


@dataclass(frozen=True)
class Equal:
    """One of the equal runs. Speed leaves out the first tenth of the steps; seconds count from the command.

    `first_step_seconds` is until the first step is done. nanoGPT prints a line then; labkit prints one before that
    step, and the time of a step is added.
    """

    who: str
    tokens_per_second: float
    held_out_loss: float
    first_step_seconds: float
    total_seconds: float
    peak_memory_mib: float


@dataclass(frozen=True)
class Race:
    """Seconds from the command until a held-out loss under the target was printed, after `steps`."""

    who: str
    seconds: float
    steps: int


def our_command(run: MiniRun, folder: Path) -> list[str]:
    words = [
        "-m",
        "labkit.cli",
        "train",
        "--device",
        "cpu",
        "--precision",
        "fp32",
        "--steps",
        run.steps,
        "--seed",
        run.seed,
    ]
    return [sys.executable, *map(str, words), "--out", str(folder)]


def nano_command(run: MiniRun, folder: Path, **settings: object) -> list[str]:
    shape = {name: getattr(run, name) for name in ("batch_size", "block_size", "n_layer", "n_head", "n_embd")}
    fixed = {"dataset": DATASET, "out_dir": folder, "device": "cpu", "compile": False, "dtype": "float32"}
    fixed |= {"gradient_accumulation_steps": 1, "dropout": 0.0, "bias": True, "log_interval": 1}
    return [sys.executable, "train.py", *(f"--{name}={value}" for name, value in (fixed | shape | settings).items())]


def our_equal_run(run: MiniRun, prepared: Prepared, folder: Path) -> Equal:
    lines, memory, seconds = watched(our_command(run, folder), HERE.parent)
    rows = [(when, *found.groups()) for when, line in lines if (found := OUR_ROW.search(line))]
    speed = statistics.median(float(row[3]) for row in rows if int(row[1]) > run.steps // 10)
    model, _ = load_mini_gpt2(folder / RUN_FOLDER / CHECKPOINT)
    first = rows[0][0] + run.batch_size * run.block_size / speed
    return Equal("labkit", speed, whole_loss(model, prepared), first, seconds, memory)


def nano_equal_run(run: MiniRun, prepared: Prepared, folder: Path, nano: Path) -> Equal:
    schedule = {"learning_rate": run.learning_rate, "min_lr": run.learning_rate / 10, "lr_decay_iters": run.steps}
    schedule |= {"warmup_iters": run.steps // 10, "max_iters": run.steps, "beta2": 0.95}
    looks = {"eval_interval": run.steps, "eval_iters": 8, "always_save_checkpoint": True}
    lines, memory, seconds = watched(nano_command(run, folder, **schedule, **looks), nano)
    steps = [(when, int(m[1]), float(m[2])) for when, line in lines if (m := NANO_STEP.search(line))]
    times = [milliseconds for _, step, milliseconds in steps if run.steps // 10 < step < run.steps]
    speed = run.batch_size * run.block_size / (statistics.median(times) / 1000)
    return Equal("nanoGPT", speed, whole_loss(nano_model(nano, folder), prepared), steps[0][0], seconds, memory)


def nano_model(nano: Path, folder: Path) -> Callable[[Tensor], Tensor]:
    """The trained model in nanoGPT's own class, wrapped to give logits for every position."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", nano / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    saved = torch.load(folder / "ckpt.pt", weights_only=False)  # written a moment ago by the run above
    model = module.GPT(module.GPTConfig(**saved["model_args"]))
    model.load_state_dict(saved["model"])
    model.eval()
    return lambda ids: model(ids, ids)[0]


@torch.no_grad()
def whole_loss(model: Callable[[Tensor], Tensor], prepared: Prepared) -> float:
    """Loss over the whole held-out text in windows that do not overlap: the same tokens for every model."""
    size = prepared.config.block_size
    tokens = torch.from_numpy(np.asarray(prepared.held_out.tokens).astype(np.int64))
    count = (len(tokens) - 1) // size
    inputs, targets = (tokens[start : start + count * size].view(count, size) for start in (0, 1))
    losses = [
        functional.cross_entropy(model(i).flatten(0, 1), t.flatten(), reduction="sum")
        for i, t in zip(inputs.split(32), targets.split(32), strict=True)
    ]
    return (torch.stack(losses).sum() / targets.numel()).item()


def race(who: str, command: list[str], folder: Path, row: re.Pattern, target: float) -> Race:
    for when, line in watched(command, folder, until=lambda line: under(row, line, target))[0]:
        if under(row, line, target):
            return Race(who, when, int(row.search(line)[1]))
    raise SystemExit(f"{who} never came under {target}: raise --target")


def under(row: re.Pattern, line: str, target: float) -> bool:
    found = row.search(line)
    return bool(found) and int(found[1]) > 0 and float(found[2]) < target


def watched(command: list[str], folder: Path, until=lambda line: False) -> tuple[list[tuple[float, str]], float, float]:
    """Lines with the second each came at, peak resident memory in MiB, and the whole time in seconds.

    The process is ended as soon as `until` is true of a line.
    """
    threads = {name: str(THREADS) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    environment = {**os.environ, **threads, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(HERE.parent)}
    started, lines, ended = time.perf_counter(), [], False
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        lines.append((time.perf_counter() - started, line))
        if until(line):
            process.kill()
            ended = True
            break
    _, status, usage = os.wait4(process.pid, 0)
    if status and not ended:
        raise SystemExit(f"{command[1]} ended with status {status}")
    return lines, usage.ru_maxrss / 1024, time.perf_counter() - started


def write_tokens(prepared: Prepared, nano: Path) -> None:
    """nanoGPT's data files from the very tokens that labkit trains on."""
    folder = nano / "data" / DATASET
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in (("train", prepared.training), ("val", prepared.held_out)):
        np.asarray(data.tokens, dtype=np.uint16).tofile(folder / f"{name}.bin")
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": prepared.config.vocab_size}))


def table(runs: list, names: tuple[str, ...]) -> str:
    lines = ["| median | labkit | nanoGPT | labkit / nanoGPT |", "|---|---|---|---|"]
    for name in names:
        mine, theirs = (
            statistics.median(getattr(run, name) for run in runs if run.who == who) for who in ("labkit", "nanoGPT")
        )
        lines.append(f"| {name.replace('_', ' ')} | {mine:,.2f} | {theirs:,.2f} | {mine / theirs:.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", type=Path, required=True, help="folder of a nanoGPT clone")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--target", type=float, default=2.2, help="held-out loss that ends the race")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    run, nano = MiniRun(steps=options.steps), options.nanogpt.resolve()
    prepared = prepare(run)
    write_tokens(prepared, nano)
    equal: list[Equal] = []
    races: list[Race] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        theirs = nano_command(run, folder, **NANO_OWN, max_iters=2000, eval_interval=30, eval_iters=8)
        for number in range(options.repeats):
            run = replace(run, seed=MiniRun.seed + number)
            equal += [our_equal_run(run, prepared, folder), nano_equal_run(run, prepared, folder, nano)]
            races.append(race("labkit", our_command(run, folder), HERE.parent, OUR_ROW, options.target))
            races.append(race("nanoGPT", theirs, nano, NANO_LOSS, options.target))
    report = environment_report("cpu")
    machine = {"cpu": report.cpu, "cores": report.cores, "torch": report.torch, "threads": THREADS}
    results = HERE / "results" / "training.json"
    results.parent.mkdir(exist_ok=True)
    held = {"machine": machine, "equal": [asdict(run) for run in equal], "race": [asdict(run) for run in races]}
    results.write_text(json.dumps(held | {"target": options.target}, indent=2) + "\n")
    print(f"{report.cpu}, {THREADS} threads, torch {report.torch}, {options.repeats} runs each, in turns\n")
    print(table(equal, tuple(Equal.__dataclass_fields__)[1:]), "\n")
    print(f"until the held-out loss is under {options.target:g}\n\n{table(races, ('seconds', 'steps'))}")


if __name__ == "__main__":
    main()
