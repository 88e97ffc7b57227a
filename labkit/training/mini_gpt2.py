"""The learner's training run: mini GPT-2 on a text file, and the evidence it leaves.

The run folder keeps its name on every route; what it proves is written in its README and follows from the device alone:
a CPU or MPS run is a smoke test, and only a CUDA run can be called CUDA acceptance.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from labkit.environment import EnvironmentReport, environment_report
from labkit.errors import LabError
from labkit.evidence import Pack, csv_text, json_text, write_atomically
from labkit.gpt2 import GPT2, GPT2Config
from labkit.layout import DATA, display_path
from labkit.training.loop import LOG_COLUMNS, LogRow, TokenData, TrainSettings, train
from labkit.training.tokens import encode_text, train_bpe, train_characters

RUN_FOLDER = "openllm_gpu_training_run"
TRACE = "gpu_train_log.txt"
LESSON = "13.2"
CHECKPOINT = "mini_gpt2_checkpoint.pt"
SHOP_TEXT = DATA / "corpus" / "shop.txt"
SAMPLE_PROMPT = "Customer:"
SMOKE_TEST, CUDA_ACCEPTANCE = "smoke test", "CUDA acceptance"


@dataclass(frozen=True)
class MiniRun:
    """What to train. `text` is a UTF-8 file; `tokenizer` is "bpe" or "char"; the last tenth of the text is held out."""

    text: Path = SHOP_TEXT
    steps: int = 300
    batch_size: int = 12
    seed: int = 13
    tokenizer: str = "bpe"
    vocab_size: int = 1024
    block_size: int = 64
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    learning_rate: float = 3e-3


@dataclass(frozen=True)
class MiniResult:
    rows: tuple[LogRow, ...]
    parameter_count: int
    sample: str
    verdict: str
    files: tuple[Path, ...]


def train_into_pack(
    pack: Pack, run: MiniRun, device: str = "auto", on_row: Callable[[LogRow], None] = lambda row: None
) -> MiniResult:
    """`train_mini_gpt2` into the pack's folder, then every file entered into its manifest."""
    result = train_mini_gpt2(pack.folder, run, device, on_row)
    pack.record(RUN_FOLDER, LESSON)
    pack.record(TRACE, LESSON)
    return result


def train_mini_gpt2(
    out: Path, run: MiniRun, device: str = "auto", on_row: Callable[[LogRow], None] = lambda row: None
) -> MiniResult:
    """Train and write RUN_FOLDER and TRACE into `out`. The same seed and machine give the same losses on a CPU.

    Raises LabError before anything is written: for an absent device, an unusable text, or fewer than two steps (the
    log needs three rows to show a direction).
    """
    check_run(run)
    report = environment_report(device)
    text = read_text(run.text)
    tokenizer = make_tokenizer(run, text)
    training, held_out = split_text(encode_text(tokenizer, text), run.block_size)
    torch.manual_seed(run.seed)
    sizes = {name: getattr(run, name) for name in ("block_size", "n_layer", "n_head", "n_embd")}
    model = GPT2(GPT2Config(vocab_size=tokenizer.get_vocab_size(), **sizes))
    rows = train(model, training, held_out, settings_of(run), report.device, on_row)
    sample = write_sample(model, tokenizer, run.seed)
    return _write_run(out, run, report, model, tokenizer, rows, sample)


def check_run(run: MiniRun) -> None:
    """Raises LabError for numbers that cannot make a run, or for a text that is no text."""
    if run.steps < 2:
        raise LabError(f"{run.steps} steps are too few for a training log", "give at least 2 steps")
    if run.batch_size < 1:
        raise LabError(f"a batch of {run.batch_size} windows is empty", "give a batch size of at least 1")
    read_text(run.text)


def settings_of(run: MiniRun) -> TrainSettings:
    """About ten log rows and a tenth of the steps as warm-up, whatever the length of the run."""
    return TrainSettings(
        steps=run.steps,
        batch_size=run.batch_size,
        block_size=run.block_size,
        learning_rate=run.learning_rate,
        warmup_steps=max(1, run.steps // 10),
        log_every=max(1, run.steps // 10),
        seed=run.seed,
    )


def read_text(path: Path) -> str:
    """The text in `path`. Raises LabError for a file that is missing, empty, or not UTF-8."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise LabError(f"the text {Path(path).name} cannot be read: {error.strerror}", "check the path") from None
    except UnicodeDecodeError as error:
        where = f"byte {error.start}"
        raise LabError(f"{Path(path).name} is not UTF-8 text", "save it as UTF-8 and run again", where) from None
    if not text.strip():
        raise LabError(f"{Path(path).name} is empty", "give a text of at least a few thousand words")
    return text


def make_tokenizer(run: MiniRun, text: str) -> Tokenizer:
    if run.tokenizer == "bpe":
        return train_bpe([text], run.vocab_size)
    if run.tokenizer == "char":
        return train_characters(text)
    raise LabError(f"there is no tokenizer called {run.tokenizer!r}", "choose bpe or char")


def split_text(tokens, block_size: int) -> tuple[TokenData, TokenData]:
    """The first nine tenths for training, the last tenth held out; the two share no token."""
    cut = len(tokens) * 9 // 10
    if len(tokens) - cut < block_size + 2:
        raise LabError(
            f"the text has only {len(tokens)} tokens, too few for windows of {block_size}",
            f"give a text of at least {10 * (block_size + 2)} tokens",
        )
    return TokenData(tokens[:cut]), TokenData(tokens[cut:])


def write_sample(model: GPT2, tokenizer: Tokenizer, seed: int, tokens: int = 60) -> str:
    ids = torch.tensor([tokenizer.encode(SAMPLE_PROMPT).ids], device=next(model.parameters()).device)
    return tokenizer.decode(model.generate(ids, tokens, temperature=0.8, seed=seed)[0].tolist())


def verdict_of(rows: Sequence[LogRow]) -> str:
    return CUDA_ACCEPTANCE if all(row.device == "cuda" for row in rows) else SMOKE_TEST


def trace_text(report: EnvironmentReport, run: MiniRun, parameters: int, rows: Sequence[LogRow], sample: str) -> str:
    """gpu_train_log.txt: what a terminal showed, in a form that can be held against training_log.csv."""
    lines = [f"device: {report.device} ({report.device_reason})"]
    lines.append(f"gpu: {report.gpu}")
    lines.append(f"model: mini GPT-2, {parameters:,} parameters, seed {run.seed}, text {display_path(run.text)}")
    lines += [trace_line(row) for row in rows]
    lines += [f"checkpoint: {RUN_FOLDER}/{CHECKPOINT}", f"verdict: {verdict_of(rows)}", f"sample: {sample!r}"]
    return "\n".join(lines) + "\n"


def trace_line(row: LogRow) -> str:
    return (
        f"step {row.step} | train loss {row.train_loss:.4f} | held-out loss {row.val_loss:.4f} | "
        f"learning rate {row.learning_rate:.2e} | {row.tokens_per_second:.0f} tokens/s | {row.device}"
    )


def load_mini_gpt2(path: Path) -> tuple[GPT2, Tokenizer]:
    """The model and tokenizer of a checkpoint, loaded weights-only: nothing in the file can run."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        model = GPT2(GPT2Config(**saved["config"]))
        model.load_state_dict(saved["model"])
        return model.eval(), Tokenizer.from_str(saved["tokenizer"])
    except Exception as error:  # torch.load and the tokenizer raise many kinds; all mean the same to a learner
        raise LabError(f"{Path(path).name} is not a mini GPT-2 checkpoint: {error}", "train again") from error


def _write_run(out: Path, run: MiniRun, report, model: GPT2, tokenizer: Tokenizer, rows, sample: str) -> MiniResult:
    parameters, verdict = sum(p.numel() for p in model.parameters()), verdict_of(rows)
    facts = {"parameter_count": parameters, "steps": run.steps, "seed": run.seed, "tokenizer": run.tokenizer}
    facts |= {"text": display_path(run.text), "batch_size": run.batch_size, "verdict": verdict}
    contents = {
        f"{RUN_FOLDER}/environment_report.json": json_text(report.as_dict() | facts).encode(),
        f"{RUN_FOLDER}/training_log.csv": csv_text((_rounded(row) for row in rows), LOG_COLUMNS).encode(),
        f"{RUN_FOLDER}/{CHECKPOINT}": _checkpoint(model, tokenizer, run),
        f"{RUN_FOLDER}/sample.txt": f"prompt: {SAMPLE_PROMPT}\nseed: {run.seed}\n\n{sample}\n".encode(),
        f"{RUN_FOLDER}/README.md": _readme(run, report, parameters, rows, verdict).encode(),
        TRACE: trace_text(report, run, parameters, rows, sample).encode(),
    }
    for name, content in contents.items():
        write_atomically(Path(out) / name, content)
    return MiniResult(tuple(rows), parameters, sample, verdict, tuple(Path(out) / name for name in contents))


def _rounded(row: LogRow) -> dict:
    return asdict(row) | {key: f"{getattr(row, key):.4f}" for key in ("train_loss", "val_loss", "grad_norm")}


def _checkpoint(model: GPT2, tokenizer: Tokenizer, run: MiniRun) -> bytes:
    buffer = io.BytesIO()
    weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    saved = {"config": asdict(model.config), "model": weights, "tokenizer": tokenizer.to_str()}
    torch.save(saved | {"step": run.steps, "seed": run.seed}, buffer)
    return buffer.getvalue()


def _readme(run: MiniRun, report: EnvironmentReport, parameters: int, rows: Sequence[LogRow], verdict: str) -> str:
    meaning = {
        SMOKE_TEST: "The training loop runs and learns on this machine. It says nothing about a GPU or about speed.",
        CUDA_ACCEPTANCE: f"The training loop ran on {report.gpu} from the first row to the last.",
    }
    return f"""# Mini GPT-2 training run: {verdict}

{meaning[verdict]}

- Device: {report.device} ({report.device_reason})
- Parameters: {parameters:,}
- Steps: {run.steps}, seed {run.seed}, tokenizer {run.tokenizer}
- Held-out loss: {rows[0].val_loss:.4f} before, {rows[-1].val_loss:.4f} after
- Repeat it: labkit train --out DIR --steps {run.steps} --seed {run.seed} --device {report.device}

The files: environment_report.json (machine), training_log.csv (losses), {CHECKPOINT} (weights, tokenizer and
configuration, loadable with weights_only=True), sample.txt (what the model writes).
"""
