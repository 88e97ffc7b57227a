"""What a mini GPT-2 run is: its text, its sizes, its tokenizer, and the numbers that are found by measuring."""

import copy
import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from tokenizers import Tokenizer

from labkit.errors import LabError
from labkit.gpt2 import GPT2, GPT2Config
from labkit.layout import DATA
from labkit.training.data import TokenData, read_tokens, token_file
from labkit.training.loop import Trainer
from labkit.training.parallel import ALONE, World
from labkit.training.precision import choose_precision
from labkit.training.settings import TrainSettings
from labkit.training.sizes import size_of
from labkit.training.tokens import SMALLEST_BPE, train_bpe, train_characters

SHOP_TEXT = DATA / "corpus" / "shop.txt"
MODEL_FIELDS = ("block_size", "n_layer", "n_head", "n_embd")
TOKENIZERS = ("bpe", "char")
PROBE_STEPS = 5
EVALUATION_STEPS = 30  # what the held-out losses of a whole log cost, in batches: 11 rows of 8, a third of a step each
GAIN = 1.05  # a doubled batch must bring this many times the tokens per second to be worth its memory
LARGEST_BATCH = 512


@dataclass(frozen=True)
class MiniRun:
    """What to train. `text` is a UTF-8 file; `tokenizer` is "bpe" or "char"; the last tenth of the text is held out.

    The sizes are those of "mini" (`labkit.training.sizes`). A `batch_size` of 0 is found by measuring, and with
    `minutes` the number of steps is.
    """

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
    learning_rate: float = 4e-3
    accumulate: int = 1
    precision: str = "auto"
    minutes: float = 0.0

    @classmethod
    def of_size(cls, size: str, **given: object) -> "MiniRun":
        """The run that `size` names, with every field that is `given` (and not None) set alone."""
        return cls(**(asdict(size_of(size)) | {name: value for name, value in given.items() if value is not None}))


@dataclass(frozen=True)
class Prepared:
    """A text turned into what a trainer needs. `text_sha` is of the file's content."""

    tokenizer: Tokenizer
    training: TokenData
    held_out: TokenData
    config: GPT2Config
    text_sha: str

    def trainer(self, model: GPT2, run: MiniRun, device: str, **more: object) -> Trainer:
        return Trainer(model, self.training, self.held_out, settings_of(run), device, **more)

    def made_of(self, run: MiniRun, device: str, precision: str, world: World) -> dict[str, str]:
        """All that must be the same for an interrupted run to be continued; `precision` is the one that was chosen."""
        facts = {f.name: str(getattr(run, f.name)) for f in fields(run) if f.name != "text"}
        facts |= {"text": self.text_sha, "device": device, "precision": precision}
        facts |= {"processes": str(world.size), "parallel": world.way}
        return facts | {"tokens": hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest()[:12]}


def check_run(run: MiniRun, device: str, world: World = ALONE) -> None:
    """Raises LabError for numbers that cannot make a run on `device`, and for a text that is no text."""
    if run.steps < 2:
        raise LabError(f"{run.steps} steps are too few for a training log", "give at least 2 steps")
    if run.batch_size < 0 or run.accumulate < 1:
        raise LabError("a step needs at least one batch of at least one window", "give 1 or more, or --batch-size auto")
    if not 0 <= run.minutes < math.inf:
        raise LabError(f"{run.minutes:g} minutes are no time to train", "give a positive --minutes, or --steps")
    if not 0 < run.learning_rate < math.inf:
        raise LabError(f"{run.learning_rate:g} is no learning rate", "give a small positive number, such as 3e-3")
    if not 0 <= run.seed < 2**63:
        raise LabError(f"{run.seed} is no seed", "give a whole number from 0 on")
    for name in MODEL_FIELDS:
        if getattr(run, name) < 1:
            raise LabError(f"{getattr(run, name)} is too small", "give 1 or more", f"--{name.replace('_', '-')}")
    if run.n_embd % run.n_head:
        what = f"a width of {run.n_embd} cannot be shared by {run.n_head} heads"
        raise LabError(what, "make --n-embd a multiple of --n-head")
    if run.tokenizer not in TOKENIZERS:
        raise LabError(f"there is no tokenizer called {run.tokenizer!r}", f"choose {' or '.join(TOKENIZERS)}")
    if run.tokenizer == "bpe" and run.vocab_size < SMALLEST_BPE:
        what = f"a byte-level vocabulary of {run.vocab_size} cannot hold all bytes"
        raise LabError(what, f"give --vocab-size {SMALLEST_BPE} or more")
    if world.size > 1 and (run.minutes or run.batch_size == 0):
        raise LabError("several processes cannot measure a run", "give --steps and --batch-size as numbers")
    choose_precision(run.precision, device)
    read_text(run.text)


def read_text(path: Path) -> str:
    """The text in `path`. Raises LabError for a file that is missing, empty, binary, or not UTF-8."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise LabError(f"the text {Path(path).name} cannot be read: {error.strerror}", "check the path") from None
    except UnicodeDecodeError as error:
        where = f"byte {error.start}"
        raise LabError(f"{Path(path).name} is not UTF-8 text", "save it as UTF-8 and run again", where) from None
    if "\0" in text:
        raise LabError(f"{Path(path).name} is a binary file", "give a text file")
    if not text.strip():
        raise LabError(f"{Path(path).name} is empty", "give a text of at least a few thousand words")
    return text


def prepare(run: MiniRun) -> Prepared:
    """Read, tokenize and split the text. Raises LabError as `read_text` does, and for a text that is too short."""
    text = read_text(run.text)
    tokenizer = make_tokenizer(run, text)
    training, held_out = split_tokens(read_tokens(token_file(tokenizer, text)), run.block_size)
    sizes = {name: getattr(run, name) for name in MODEL_FIELDS}
    config = GPT2Config(vocab_size=tokenizer.get_vocab_size(), **sizes)
    return Prepared(tokenizer, training, held_out, config, hashlib.sha256(text.encode()).hexdigest()[:12])


def make_tokenizer(run: MiniRun, text: str) -> Tokenizer:
    return train_bpe([text], run.vocab_size) if run.tokenizer == "bpe" else train_characters(text)


def split_tokens(tokens, block_size: int) -> tuple[TokenData, TokenData]:
    """The first nine tenths for training, the last tenth held out; the two share no token."""
    cut = len(tokens) * 9 // 10
    if len(tokens) - cut < block_size + 2:
        raise LabError(
            f"the text has only {len(tokens)} tokens, too few for windows of {block_size}",
            f"give a text of at least {10 * (block_size + 2)} tokens",
        )
    return TokenData(tokens[:cut]), TokenData(tokens[cut:])


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
        accumulate=run.accumulate,
        precision=run.precision,
    )


def measured(run: MiniRun, speed: Callable[[MiniRun], float]) -> MiniRun:
    """`run` with nothing left to find: `speed` gives the tokens per second of a run, measured for a few steps.

    The batch is doubled until it no longer brings GAIN times the tokens per second, or no longer fits; the steps are
    those that fit into `minutes` beside the held-out losses, so that the schedule ends when the time does.
    """
    if run.batch_size == 0:
        run = replace(run, batch_size=_useful_batch(run, speed))
    if run.minutes:
        batches = run.minutes * 60 * speed(run) / (run.batch_size * run.block_size) - EVALUATION_STEPS
        run = replace(run, steps=max(2, int(batches / run.accumulate)))
    return run


def as_interrupted(run: MiniRun, steps: int, batch_size: int) -> MiniRun:
    """`run` with the numbers that were measured when it began; a number that was given stays as it is given now."""
    return replace(run, steps=steps if run.minutes else run.steps, batch_size=run.batch_size or batch_size)


def _useful_batch(run: MiniRun, speed: Callable[[MiniRun], float]) -> int:
    batch, best = 4, speed(replace(run, batch_size=4))
    while 2 * batch <= LARGEST_BATCH:
        try:
            found = speed(replace(run, batch_size=2 * batch))
        except LabError:  # the loop's own word for a batch that does not fit
            break
        if found < GAIN * best:
            break
        batch, best = 2 * batch, found
    return batch


def tokens_per_second(prepared: Prepared, model: GPT2, run: MiniRun, device: str) -> float:
    """The speed of `run` on a copy of `model`, over a few steps after a first one that warms up."""
    trainer = prepared.trainer(copy.deepcopy(model), replace(run, steps=PROBE_STEPS), device)
    try:
        trainer.step()
        trainer.wait()
        started = time.perf_counter()
        for _ in range(PROBE_STEPS - 1):
            trainer.step()
        trainer.wait()
        tokens = (PROBE_STEPS - 1) * run.batch_size * run.block_size * run.accumulate
        return tokens / (time.perf_counter() - started)
    finally:
        trainer.close()
