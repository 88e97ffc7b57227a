"""The files that a mini GPT-2 run leaves: log, environment, checkpoint, sample, README and the terminal's trace.

The run folder keeps its name on every route; what it proves is written in its README and follows from the device alone:
a CPU or MPS run is a smoke test, and only a CUDA run can be called CUDA acceptance.
"""

import io
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from tokenizers import Tokenizer

from labkit.environment import EnvironmentReport, peak_memory_mib
from labkit.errors import LabError
from labkit.evidence import csv_text, json_text, write_atomically
from labkit.gpt2 import GPT2, GPT2Config
from labkit.layout import display_path
from labkit.routes import ACCEPTANCE_STEPS
from labkit.training.log import LOG_COLUMNS, LogRow, trace_line
from labkit.training.parallel import ALONE, World
from labkit.training.plan import SHOP_TEXT, MiniRun
from labkit.training.precision import Precision

RUN_FOLDER = "openllm_gpu_training_run"
TRACE = "gpu_train_log.txt"
CHECKPOINT = "mini_gpt2_checkpoint.pt"
SAMPLE_PROMPT = "Customer:"
SMOKE_TEST, CUDA_ACCEPTANCE = "smoke test", "CUDA acceptance"


@dataclass(frozen=True)
class FinishedRun:
    """A run at its end, and then the files it left. `run` has every number that was measured filled in."""

    run: MiniRun
    report: EnvironmentReport
    precision: Precision
    model: GPT2
    tokenizer: Tokenizer
    rows: tuple[LogRow, ...]
    world: World = ALONE

    @property
    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def verdict(self) -> str:
        return verdict_of(self.rows)

    @property
    def sample(self) -> str:
        ids = torch.tensor([self.tokenizer.encode(SAMPLE_PROMPT).ids])
        return self.tokenizer.decode(self.model.generate(ids, 60, temperature=0.8, seed=self.run.seed)[0].tolist())


def verdict_of(rows: Sequence[LogRow]) -> str:
    """CUDA acceptance needs every row on cuda and a run of ACCEPTANCE_STEPS; everything else is a smoke test."""
    on_cuda = all(row.device == "cuda" for row in rows)
    return CUDA_ACCEPTANCE if on_cuda and rows[-1].step >= ACCEPTANCE_STEPS else SMOKE_TEST


def write_run(out: Path, done: FinishedRun) -> tuple[Path, ...]:
    """Write RUN_FOLDER and TRACE into `out`, each file in one step."""
    sample = done.sample
    heading = f"prompt: {SAMPLE_PROMPT}\nseed: {done.run.seed}\ntemperature: 0.8\n\n"
    contents = {
        f"{RUN_FOLDER}/environment_report.json": json_text(run_facts(done)),
        f"{RUN_FOLDER}/training_log.csv": csv_text(map(_rounded, done.rows), LOG_COLUMNS),
        f"{RUN_FOLDER}/{CHECKPOINT}": _checkpoint(done),
        f"{RUN_FOLDER}/sample.txt": f"{heading}{sample}\n",
        f"{RUN_FOLDER}/README.md": _readme(done),
        TRACE: trace_text(done, sample),
    }
    for name, content in contents.items():
        write_atomically(Path(out) / name, content if isinstance(content, bytes) else content.encode())
    return tuple(Path(out) / name for name in contents)


def run_facts(done: FinishedRun) -> dict:
    """environment_report.json: the machine, and what the run was on it. Memory is the peak, MiB (2^20 bytes)."""
    gpu_peak = torch.cuda.max_memory_allocated() / 2**20 if done.report.device == "cuda" else 0.0
    return done.report.as_dict() | {
        "parameter_count": done.parameter_count,
        "steps": done.run.steps,
        "seed": done.run.seed,
        "tokenizer": done.run.tokenizer,
        "text": display_path(done.run.text),
        "batch_size": done.run.batch_size,
        "accumulate": done.run.accumulate,
        "precision": done.precision.name,
        "precision_reason": done.precision.reason,
        "processes": done.world.size,
        "parallel": done.world.way if done.world.size > 1 else "none",
        "threads": torch.get_num_threads(),
        "peak_memory_mib": round(peak_memory_mib(), 1),
        "peak_gpu_memory_mib": round(gpu_peak, 1),
        "verdict": done.verdict,
    }


def repeat_command(run: MiniRun, device: str, world: World = ALONE) -> str:
    """The command that makes this run again: every field that is not the default of the size mini."""
    words = ["labkit"] if world.size == 1 else ["torchrun", "--nproc-per-node", str(world.size), "-m", "labkit.cli"]
    words += ["train", "--out", "DIR", "--device", device, "--steps", str(run.steps), "--seed", str(run.seed)]
    if world.size > 1:
        words += ["--parallel", world.way]
    if run.text != SHOP_TEXT:
        words += ["--text", display_path(run.text)]
    for field in fields(MiniRun):
        value = getattr(run, field.name)
        if field.name not in ("text", "steps", "seed", "minutes") and value != field.default:
            words += [f"--{field.name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def trace_text(done: FinishedRun, sample: str) -> str:
    """gpu_train_log.txt: what a terminal showed, in a form that can be held against training_log.csv."""
    run, report = done.run, done.report
    lines = [
        f"device: {report.device} ({report.device_reason})",
        f"gpu: {report.gpu}, driver {report.driver}",
        f"precision: {done.precision.name} ({done.precision.reason})",
        f"model: mini GPT-2, {done.parameter_count:,} parameters, seed {run.seed}, text {display_path(run.text)}",
        *map(trace_line, done.rows),
        f"checkpoint: {RUN_FOLDER}/{CHECKPOINT}",
        f"verdict: {done.verdict}",
        f"sample: {sample!r}",
    ]
    return "\n".join(lines) + "\n"


def load_mini_gpt2(path: Path) -> tuple[GPT2, Tokenizer]:
    """The model and tokenizer of a checkpoint, loaded weights-only: nothing in the file can run."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        model = GPT2(GPT2Config(**saved["config"]))
        model.load_state_dict(saved["model"])
        return model.eval(), Tokenizer.from_str(saved["tokenizer"])
    except Exception as error:  # torch.load and the tokenizer raise many kinds; all mean the same to a learner
        raise LabError(f"{Path(path).name} is not a mini GPT-2 checkpoint: {error}", "train again") from error


def _rounded(row: LogRow) -> dict:
    return asdict(row) | {key: f"{getattr(row, key):.4f}" for key in ("train_loss", "val_loss", "grad_norm")}


def _checkpoint(done: FinishedRun) -> bytes:
    buffer = io.BytesIO()
    saved = {
        "config": asdict(done.model.config),
        "model": done.model.state_dict(),
        "tokenizer": done.tokenizer.to_str(),
    }
    torch.save(saved | {"step": done.run.steps, "seed": done.run.seed}, buffer)
    return buffer.getvalue()


def _readme(done: FinishedRun) -> str:
    run, report, rows = done.run, done.report, done.rows
    meaning = {
        SMOKE_TEST: "The training loop runs and learns on this machine. It says nothing about speed or a long run.",
        CUDA_ACCEPTANCE: f"The training loop ran on {report.gpu} from the first row to the last.",
    }
    return f"""# Mini GPT-2 training run: {done.verdict}

{meaning[done.verdict]}

- Device: {report.device} ({report.device_reason})
- Precision: {done.precision.name} ({done.precision.reason})
- Parameters: {done.parameter_count:,}
- Steps: {run.steps}, seed {run.seed}, tokenizer {run.tokenizer}
- Held-out loss: {rows[0].val_loss:.4f} before, {rows[-1].val_loss:.4f} after
- Repeat it: {repeat_command(run, report.device, done.world)}

The files: environment_report.json (machine), training_log.csv (losses), {CHECKPOINT} (weights, tokenizer and
configuration, loadable with weights_only=True), sample.txt (what the model writes).
"""
