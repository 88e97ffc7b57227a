"""Train the embedded model from its recipe: corpus, tokenizer, architecture and settings in one YAML file."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import yaml
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from labkit.environment import choose_device
from labkit.errors import LabError
from labkit.evidence import csv_text, write_atomically
from labkit.training.log import LOG_COLUMNS, LogRow
from labkit.training.loop import Trainer
from labkit.training.resume import SNAPSHOT_SECONDS, Snapshots
from labkit.training.settings import TrainSettings
from labkit.training.tokens import CHAT_TEMPLATE, CHAT_TOKENS, END_OF_TEXT, encode_chats, train_bpe


@dataclass(frozen=True)
class Stage:
    """A part of the training with its own text: `train` is a JSONL file of chats, relative to the recipe."""

    train: str
    settings: TrainSettings


@dataclass(frozen=True)
class Recipe:
    """`held_out` and `tokenizer` are JSONL files of chats, relative to the recipe; the second makes the tokenizer.

    `architecture` holds LlamaConfig's fields.
    """

    stages: tuple[Stage, ...]
    held_out: str
    tokenizer: str
    vocab_size: int
    architecture: dict

    @property
    def steps(self) -> int:
        return sum(stage.settings.steps for stage in self.stages)


def read_recipe(path: Path) -> Recipe:
    """Raises LabError for a missing file or a field that is missing, unknown or misspelt."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        stages = tuple(Stage(stage["train"], TrainSettings(**stage["settings"])) for stage in values["stages"])
        return Recipe(**values | {"stages": stages})
    except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
        raise LabError(
            f"{Path(path).name} is not a recipe: {error}", "compare it with mini-instruct's recipe"
        ) from None


def train_from_recipe(
    path: Path,
    out: Path,
    device: str = "auto",
    on_row: Callable[[LogRow], None] = lambda row: None,
    resume: bool = False,
    snapshot_seconds: float = SNAPSHOT_SECONDS,
) -> list[LogRow]:
    """Train and save to `out`: weights in bf16 safetensors, tokenizer with chat template, generation config, log.

    With `resume`, a run that was killed goes on where its last snapshot was taken, whichever stage that was in.
    Raises LabError for a recipe or text that cannot be used, and as `Trainer.run` and `Snapshots.load` do.
    """
    chosen = choose_device(device)
    recipe = read_recipe(path)
    folder = Path(path).resolve().parent
    texts = [read_chats(folder / stage.train) for stage in recipe.stages]
    vocabulary_text = (turn["content"] for chat in read_chats(folder / recipe.tokenizer) for turn in chat)
    tokenizer = train_bpe(vocabulary_text, recipe.vocab_size)
    held_out = encode_chats(tokenizer, read_chats(folder / recipe.held_out))
    torch.manual_seed(recipe.stages[0].settings.seed)
    model = LlamaForCausalLM(llama_config(recipe, tokenizer))
    rows: list[LogRow] = []
    kept = [Snapshots(out / f"stage_{number}.resume.pt", snapshot_seconds) for number in range(1, len(texts) + 1)]
    if not resume:
        for snapshots in kept:
            snapshots.discard()
    made_of: dict[str, str] = {}
    for stage, chats, snapshots in zip(recipe.stages, texts, kept, strict=True):
        done = rows[-1].step if rows else 0

        def report(row: LogRow, done: int = done) -> None:
            rows.append(replace(row, step=done + row.step))
            on_row(rows[-1])

        trainer = Trainer(model, encode_chats(tokenizer, chats), held_out, stage.settings, chosen.name)
        made_of = _made_of(recipe, stage, folder, trainer, made_of)
        snapshots.describe(made_of)
        if resume and snapshots.load(trainer):
            for row in trainer.rows:
                report(row)
        trainer.run(report, snapshots.after_step)
        snapshots.save(trainer)  # what the next stage begins with
    save_chat_model(model, tokenizer, out)
    write_atomically(out / "training_log.csv", csv_text(map(asdict, rows), LOG_COLUMNS).encode())
    for snapshots in kept:
        snapshots.discard()
    return rows


def _made_of(recipe: Recipe, stage: Stage, folder: Path, trainer: Trainer, before: dict[str, str]) -> dict[str, str]:
    """All that must be the same for an interrupted stage to be continued; `before` is that of the stage before."""
    texts = {"train": stage.train, "held out": recipe.held_out, "tokenizer": recipe.tokenizer}
    hashes = {name: hashlib.sha256((folder / text).read_bytes()).hexdigest()[:12] for name, text in texts.items()}
    shape = {"vocab_size": recipe.vocab_size, **recipe.architecture, **asdict(stage.settings)}
    shape |= {"device": trainer.device, "precision": trainer.precision.name}
    earlier = hashlib.sha256(json.dumps(before, sort_keys=True).encode()).hexdigest()[:12] if before else "none"
    return hashes | {name: str(value) for name, value in shape.items()} | {"earlier stages": earlier}


def read_chats(path: Path) -> list[list[dict[str, str]]]:
    """The `messages` of each line. Raises LabError with the line's number for anything that is not a chat."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        raise LabError(f"{path.name} is not there", "make it with: python data/corpus/generate.py") from None
    except UnicodeDecodeError as error:
        raise LabError(f"{path.name} is not UTF-8 text (byte {error.start})", "save it as UTF-8") from None
    chats = []
    for number, line in enumerate(lines, start=1):
        try:
            chats.append(json.loads(line)["messages"])
        except (ValueError, KeyError, TypeError) as error:
            raise LabError(f"line {number} of {path.name} is not a chat: {error}", "each line needs messages") from None
    return chats


def llama_config(recipe: Recipe, tokenizer: Tokenizer) -> LlamaConfig:
    """The recipe's architecture with the token ids that the tokenizer gave to the special tokens."""
    end = tokenizer.token_to_id(CHAT_TOKENS[1])
    ids = {"bos_token_id": tokenizer.token_to_id(END_OF_TEXT), "eos_token_id": end, "pad_token_id": end}
    return LlamaConfig(vocab_size=recipe.vocab_size, tie_word_embeddings=True, **ids, **recipe.architecture)


def save_chat_model(model: LlamaForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """A folder that plain transformers loads."""
    end = CHAT_TOKENS[1]
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=end,
        pad_token=end,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.model_max_length = model.config.max_position_embeddings
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
        do_sample=False,
        max_new_tokens=128,
    )
    model.to(torch.bfloat16).save_pretrained(out)
    wrapped.save_pretrained(out)
