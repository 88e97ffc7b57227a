"""Lesson 13.2, training: the run's folder and the terminal's trace. No verdict here trusts a sentence over a number."""

import re
from itertools import pairwise
from pathlib import Path
from zipfile import ZipFile

from labkit.verification.reading import PackReader, number, per_pack, require_keys
from labkit.verification.verdicts import Contradiction, NotYet

RUN = "openllm_gpu_training_run/"
RUN_ENVIRONMENT = RUN + "environment_report.json"
RUN_LOG = RUN + "training_log.csv"
RUN_CHECKPOINT = RUN + "mini_gpt2_checkpoint.pt"
RUN_SAMPLE = RUN + "sample.txt"
RUN_README = RUN + "README.md"
RUN_FILES = (RUN_ENVIRONMENT, RUN_LOG, RUN_CHECKPOINT, RUN_SAMPLE, RUN_README)
TRACE = "gpu_train_log.txt"
SMOKE_TEST, CUDA_ACCEPTANCE = "smoke test", "CUDA acceptance"
CHECKPOINT_LIMIT = 2 * 2**30  # bytes; the mini GPT-2 is a few megabytes
MOST_TENSORS = 10_000  # of a checkpoint; GPT-2 XL has 581

_LOG_COLUMNS = (
    "step",
    "train_loss",
    "val_loss",
    "learning_rate",
    "grad_norm",
    "tokens_per_second",
    "device",
    "elapsed_seconds",
)
_ENVIRONMENT_KEYS = ("device", "parameter_count", "steps", "seed", "tokenizer", "verdict")
_CHECKPOINT_KEYS = {"config", "model", "tokenizer", "step", "seed"}
TRACE_LOSS = re.compile(
    r"^step +(\d{1,12}) *\| *train loss +(\S{1,40}) *\| *held-out loss +(\S{1,40}?) *(?:\||$)", re.M
)
_TRACE_DEVICE = re.compile(r"^device: (\w+)")
_TRACE_ROW_DEVICE = re.compile(r"^step .*\| *(cpu|cuda|mps)[ \t]*$", re.M)
_TRACE_CHECKPOINT = re.compile(r"^checkpoint: (\S+)", re.M)
_TRACE_SAMPLE = re.compile(r"^sample:\s*(\S.*)", re.M)


def check_training_run(pack: PackReader) -> str:
    """The five files of the run: filled, learning, and the checkpoint loads with the size that was reported."""
    report = run_report(pack)
    rows = log_rows(pack)
    verdict = readme_verdict(pack)
    if report["verdict"] != verdict:
        raise Contradiction(f"{RUN_README} says {verdict}, {RUN_ENVIRONMENT} says {report['verdict']}")
    if int(rows[-1]["step"]) != report["steps"]:
        raise Contradiction(
            f"{RUN_LOG} ends at step {rows[-1]['step']}, {RUN_ENVIRONMENT} says {report['steps']} steps"
        )
    if not pack.text(RUN_SAMPLE).strip():
        raise NotYet(f"{RUN_SAMPLE} is blank")
    count = check_checkpoint(pack, report)
    first, last = rows[0]["val_loss"], rows[-1]["val_loss"]
    return f"{report['steps']} steps on {rows[0]['device']}, held-out loss {first} to {last}, {count:,} parameters"


@per_pack
def run_report(pack: PackReader) -> dict:
    report = require_keys(pack.json(RUN_ENVIRONMENT), _ENVIRONMENT_KEYS, RUN_ENVIRONMENT)
    if report["verdict"] not in (SMOKE_TEST, CUDA_ACCEPTANCE):
        raise NotYet(f"{RUN_ENVIRONMENT} has the verdict {str(report['verdict'])[:40]!r}")
    for key in ("parameter_count", "steps"):
        number(report[key], f"{key} in {RUN_ENVIRONMENT}", minimum=1)
    return report


@per_pack
def log_rows(pack: PackReader) -> list[dict[str, str]]:
    """The rows of training_log.csv: at least three, steps rising, losses finite, last held-out loss below first.

    Raises NotYet for too few or unreadable rows, and for a loss that did not fall: such a run has not learned yet.
    """
    rows = pack.rows(RUN_LOG, _LOG_COLUMNS)
    if len(rows) < 3:
        raise NotYet(f"{RUN_LOG} has {len(rows)} loss rows, fewer than three")
    for index, row in enumerate(rows, start=2):
        for column in _LOG_COLUMNS:
            if column != "device":
                number(row[column], f"{column} in {RUN_LOG} row {index}")
    steps = [float(row["step"]) for row in rows]
    if steps != sorted(set(steps)):
        raise Contradiction(f"{RUN_LOG}: the steps do not rise")
    if any(float(a["elapsed_seconds"]) > float(b["elapsed_seconds"]) for a, b in pairwise(rows)):
        raise Contradiction(f"{RUN_LOG}: the elapsed time runs backwards")
    if float(rows[-1]["val_loss"]) >= float(rows[0]["val_loss"]):
        raise NotYet(f"{RUN_LOG}: held-out loss went from {rows[0]['val_loss']} to {rows[-1]['val_loss']}")
    return rows


def log_devices(pack: PackReader) -> str:
    """The device of training_log.csv; several are joined with "and", which agrees with no other file."""
    return " and ".join(sorted({row["device"] for row in pack.rows(RUN_LOG, ("device",))}))


def readme_verdict(pack: PackReader) -> str:
    """What the run's README calls the run: its line `Verdict: ...`, else the one name that it uses."""
    text = pack.text(RUN_README)
    line = re.search(r"^[^\w\n]{0,40}verdict[^\w\n]{1,40}(.+)$", text, re.I | re.M)
    said = line[1] if line else text
    places = {name: said.lower().find(name.lower()) for name in (SMOKE_TEST, CUDA_ACCEPTANCE)}
    named = {name: at for name, at in places.items() if at >= 0}
    if not named:
        raise NotYet(f"{RUN_README} says neither {SMOKE_TEST} nor {CUDA_ACCEPTANCE}")
    return min(named, key=named.get)


def check_checkpoint(pack: PackReader, report: dict) -> int:
    """Load the checkpoint, run nothing in it, and count its parameters; the count must be the reported one."""
    import torch

    path = pack.file(RUN_CHECKPOINT, limit=CHECKPOINT_LIMIT)
    _require_plain(path)
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise NotYet(f"{RUN_CHECKPOINT} does not load as weights only ({type(error).__name__})") from None
    if not isinstance(held, dict) or not set(held) >= _CHECKPOINT_KEYS:
        raise NotYet(f"{RUN_CHECKPOINT} does not hold {', '.join(sorted(_CHECKPOINT_KEYS))}")
    state = held["model"]
    if not isinstance(state, dict) or not state or not all(isinstance(t, torch.Tensor) for t in state.values()):
        raise NotYet(f"{RUN_CHECKPOINT} holds no state dict of tensors")
    if any(tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes() for tensor in state.values()):
        raise NotYet(f"{RUN_CHECKPOINT} has a tensor that is larger than what is stored of it")
    if len(state) > MOST_TENSORS or not all(bool(torch.isfinite(tensor).all()) for tensor in state.values()):
        raise NotYet(f"{RUN_CHECKPOINT} has weights that are not finite")
    count = parameter_count(state)
    for said, key in ((count, "parameter_count"), (held["step"], "steps"), (held["seed"], "seed")):
        if said != report[key]:
            raise Contradiction(f"{RUN_CHECKPOINT} has {key} {said}, {RUN_ENVIRONMENT} says {report[key]}")
    return count


def _require_plain(path: Path) -> None:
    """torch saves a zip of stored parts; a compressed one unpacks to a size that its own does not tell."""
    try:
        with ZipFile(path) as held:
            packed = [info.filename for info in held.infolist() if info.compress_size != info.file_size]
    except Exception as error:
        raise NotYet(f"{RUN_CHECKPOINT} is no checkpoint of torch ({type(error).__name__})") from None
    if packed:
        raise NotYet(f"{RUN_CHECKPOINT} has compressed parts, which torch never writes")


def parameter_count(state: dict) -> int:
    """The number of weights, the head that GPT-2 ties to the token embedding counted once."""
    import torch

    head, embedding = state.get("lm_head.weight"), state.get("transformer.wte.weight")
    tied = head is not None and embedding is not None and torch.equal(head, embedding)
    return sum(tensor.numel() for name, tensor in state.items() if not (tied and name == "lm_head.weight"))


def check_trace(pack: PackReader) -> str:
    """The terminal's trace: a device line, three finite loss lines, the checkpoint's place and a sample."""
    text = pack.text(TRACE)
    device = trace_device(pack)
    losses = trace_losses(pack)
    if len(losses) < 3:
        raise NotYet(f"{TRACE} has {len(losses)} loss lines, fewer than three")
    checkpoint = _TRACE_CHECKPOINT.search(text)
    if not checkpoint:
        raise NotYet(f"{TRACE} does not name the checkpoint")
    if not pack.path(checkpoint[1]).is_file():
        raise NotYet(f"{TRACE} names the checkpoint {checkpoint[1]}, which is missing")
    if not _TRACE_SAMPLE.search(text):
        raise NotYet(f"{TRACE} has no sample")
    return f"device {device}, {len(losses)} loss lines"


def trace_device(pack: PackReader) -> str:
    """The device of the trace's first line and of its loss lines; several are joined with "and"."""
    text = pack.text(TRACE)
    match = _TRACE_DEVICE.match(text)
    if not match:
        raise NotYet(f"{TRACE} does not begin with a device line")
    return " and ".join(sorted({match[1], *_TRACE_ROW_DEVICE.findall(text)}))


@per_pack
def trace_losses(pack: PackReader) -> dict[int, tuple[float, float]]:
    """Step to (train loss, held-out loss) as the trace printed them."""
    return {
        int(step): (number(train, f"train loss in {TRACE}"), number(held_out, f"held-out loss in {TRACE}"))
        for step, train, held_out in TRACE_LOSS.findall(pack.text(TRACE))
    }
