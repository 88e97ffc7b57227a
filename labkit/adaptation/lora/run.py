"""One fine-tuning from a file of chats to a folder: adapter or checkpoint, log and card."""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile

from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from labkit.adaptation.lora.base import (
    Base,
    check_targets,
    find_base,
    load_weights,
    trainable_parameters,
    tuning_precision,
    with_adapter,
)
from labkit.adaptation.lora.chats import EncodedChat, Mixture, encode_all, load_chats, split_held_out
from labkit.adaptation.lora.packing import packed_model
from labkit.adaptation.lora.settings import TRAINERS, LoraSettings, check_settings
from labkit.adaptation.lora.trainer import ChatTrainer, train_settings
from labkit.environment import choose_device, peak_memory_mib
from labkit.errors import LabError
from labkit.layout import EMBEDDED
from labkit.training.log import LogRow
from labkit.training.precision import Precision
from labkit.training.resume import SNAPSHOT_SECONDS, Snapshots
from labkit.training.settings import TrainSettings

SNAPSHOT = "lora.resume.pt"


@dataclass(frozen=True)
class Sources:
    """The files of a run: chats to learn, to replay (None: nothing), and to hold out (None: a share of the first)."""

    data: Path
    replay: Path | None = None
    held_out: Path | None = None


@dataclass(frozen=True)
class Prepared:
    """All that a run needs but the model: chats as tokens, and the loop's numbers."""

    mixture: Mixture
    held_out: tuple[EncodedChat, ...]
    numbers: TrainSettings


@dataclass(frozen=True)
class Task:
    """What is trained, on what, where, and by which trainer."""

    base: Base
    sources: Sources
    settings: LoraSettings
    prepared: Prepared
    device: str
    precision: Precision
    trainer: str


@dataclass(frozen=True)
class Learned:
    """What a trainer leaves: the model, its log, the step whose weights were kept, and how chats lay in a batch.

    `earlier_seconds` were trained before the run was interrupted, up to the snapshot that it went on from.
    """

    model: nn.Module
    rows: tuple[LogRow, ...]
    kept_step: int
    packed: bool
    earlier_seconds: float = 0.0


@dataclass(frozen=True)
class LoraRun:
    """A finished run. `trainable` and `total` count parameters; `kept_step` is the step whose weights were kept."""

    base: Base
    sources: Sources
    settings: LoraSettings
    prepared: Prepared
    rows: tuple[LogRow, ...]
    trainable: int
    total: int
    seconds: float
    device: str
    precision: Precision
    packed: bool
    kept_step: int
    trainer: str
    peak_memory_mib: float

    @property
    def kept_loss(self) -> float:
        """Held-out loss of the weights that were kept."""
        return next((row for row in self.rows if row.step == self.kept_step), self.rows[-1]).val_loss


def tune(
    sources: Sources,
    out: Path,
    model: str = EMBEDDED,
    settings: LoraSettings | None = None,
    device: str = "auto",
    trainer: str = "labkit",
    on_row: Callable[[LogRow], None] = lambda row: None,
    resume: bool = False,
    snapshot_seconds: float = SNAPSHOT_SECONDS,
) -> LoraRun:
    """Fine-tune `model` on chats and write `out`: the adapter (or with `full` the checkpoint), its log and its card.

    `trainer` is labkit's own loop or trl's SFTTrainer, which must be installed. With `resume` a run that was killed
    goes on where its last snapshot was taken. Raises LabError for chats that are none, settings that cannot be, a model
    that cannot be loaded, a folder that holds something else or cannot be written, and as `Trainer.run` and
    `Snapshots.load` do.
    """
    from labkit.adaptation.lora.card import write_run

    settings, out = settings or LoraSettings(), Path(out)
    check_settings(settings)
    snapshots = Snapshots(out / SNAPSHOT, snapshot_seconds)
    _check_trainer(trainer, resume)
    _check_folder(out, settings)
    files = {name: load_chats(path) for name, path in asdict(sources).items() if path}
    base, chosen = find_base(model), choose_device(device)
    precision = tuning_precision(settings.precision, chosen.name)
    tokenizer, network = _load(base, settings, chosen.name, precision)
    prepared = prepare(tokenizer, files, sources, settings, network.config, precision.name)
    task = Task(base, sources, settings, prepared, chosen.name, precision, trainer)
    total = network.num_parameters()  # of weights in 4 bits too, of which two share a byte
    _make_folder(out)  # before the work: what was trained must not be lost for want of a place
    began = time.perf_counter()
    learned = _learn(task, network, tokenizer, snapshots, on_row, resume)
    done = _finished(task, learned, total, time.perf_counter() - began)
    write_run(out, done, learned.model, tokenizer)
    (out / SNAPSHOT).unlink(missing_ok=True)
    return done


def _load(
    base: Base, settings: LoraSettings, device: str, precision: Precision
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    with loading(base.name):
        tokenizer = AutoTokenizer.from_pretrained(base.source, trust_remote_code=False)
        network = load_weights(base.source, settings, device, precision)
    check_targets(network, settings.targets)
    return tokenizer, network


def _learn(
    task: Task, network: PreTrainedModel, tokenizer, snapshots: Snapshots, on_row: Callable, resume: bool
) -> Learned:
    """Train `network`, or an adapter on it, with the trainer of `task`."""
    if task.trainer == "trl":
        from labkit.adaptation.lora.trl_trainer import train_with_trl

        tuned = _trainable(network, task.settings)
        rows = train_with_trl(tuned, tokenizer, task.prepared, task.device, task.precision, on_row)
        return Learned(tuned, tuple(rows), rows[-1].step, packed=False)
    with packed_model(network) as packed:
        tuned, chats = _trainable(network, task.settings), task.prepared
        loop = ChatTrainer(tuned, chats.mixture, chats.held_out, task.settings, chats.numbers, task.device, packed)
        snapshots.describe(_made_of(task, loop))
        rows, kept = _run(loop, snapshots, on_row, resume)
    return Learned(tuned, tuple(rows), kept, packed, loop.earlier_seconds)


def _trainable(network: PreTrainedModel, settings: LoraSettings) -> nn.Module:
    return network if settings.full else with_adapter(network, settings)


def _finished(task: Task, learned: Learned, total: int, seconds: float) -> LoraRun:
    """`total` counts the parameters of the base alone, `seconds` what this process trained."""
    trainable = trainable_parameters(learned.model)
    return LoraRun(
        **vars(task),
        rows=learned.rows,
        trainable=trainable,
        total=total + (0 if task.settings.full else trainable),
        seconds=round(learned.earlier_seconds + seconds, 2),
        packed=learned.packed,
        kept_step=learned.kept_step,
        peak_memory_mib=round(peak_memory_mib(), 1),
    )


def prepare(
    tokenizer, files: dict[str, list], sources: Sources, settings: LoraSettings, config, precision: str
) -> Prepared:
    """The chats of `files` as tokens, split and mixed. Raises LabError as `encode_all` and `split_held_out` do."""
    context = int(getattr(config.get_text_config(), "max_position_embeddings", 2048))
    longest = min(settings.max_length or context, context)
    encoded = {
        name: encode_all(tokenizer, chats, longest, getattr(sources, name).name) for name, chats in files.items()
    }
    chats, held_out = encoded["data"], encoded.get("held_out")
    if held_out is None:
        chats, held_out = split_held_out(chats, settings.held_out_share, settings.seed)
    per_step = settings.batch_size * settings.accumulate
    mixture = Mixture(chats, encoded.get("replay", ()), settings.replay_share, settings.seed, per_step)
    return Prepared(mixture, tuple(held_out), train_settings(settings, mixture, longest, precision))


def _run(loop: ChatTrainer, snapshots: Snapshots, on_row: Callable, resume: bool) -> tuple[list[LogRow], int]:
    """The log's rows, and the step whose weights the model ends with."""
    if resume and snapshots.load(loop):
        for row in loop.rows:
            on_row(row)
    elif not resume:
        snapshots.discard()
    rows = loop.run(on_row, snapshots.after_step)
    loop.keep_best()
    return rows, loop.best_step


def _made_of(task: Task, loop: ChatTrainer) -> dict[str, str]:
    """All that must be the same for an interrupted run to be continued."""
    named = {name: path for name, path in asdict(task.sources).items() if path}
    files = {name: hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12] for name, path in named.items()}
    facts = {"base": task.base.revision, "device": loop.device, "computed in": loop.precision.name}
    return files | facts | {name: str(value) for name, value in asdict(task.settings).items()}


def _check_trainer(trainer: str, resume: bool) -> None:
    if trainer not in TRAINERS:
        raise LabError(f"there is no trainer called {trainer!r}", f"choose {' or '.join(TRAINERS)}")
    if trainer == "trl" and not find_spec("trl"):
        raise LabError("TRL is not installed here", "install it: pip install trl==1.16.0, or use --trainer labkit")
    if trainer == "trl" and resume:
        raise LabError("only labkit's own trainer goes on with an interrupted run", "leave --resume or --trainer out")


def _check_folder(out: Path, settings: LoraSettings) -> None:
    """An adapter and a checkpoint in one folder would be read as one thing by some tools and as the other by others."""
    if out.exists() and not out.is_dir():
        raise LabError(f"{out.name} is a file", "give a folder with --out")
    other, kind = ("adapter_config.json", "an adapter") if settings.full else ("config.json", "a checkpoint")
    if (out / other).exists():
        raise LabError(f"the folder {out.name} holds {kind} already", "choose another folder with --out")


def _make_folder(out: Path) -> None:
    """Raises LabError for a folder that cannot be made, or in which no file can be made."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise unwritable(out, error) from error


@contextmanager
def loading(name: str) -> Iterator[None]:
    """What transformers raises for a model that it cannot load, as a LabError."""
    from safetensors import SafetensorError
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        yield
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LabError(
            f"the model {name} could not be loaded: {first}", "give a checkpoint's folder or a hub id"
        ) from error


def unwritable(folder: Path, error: OSError) -> LabError:
    """What stood in the way of writing into `folder`, as a LabError."""
    what = f"could not write {folder.name}: {error.strerror or error}"
    return LabError(what, "free some space or choose a folder you may write to")
