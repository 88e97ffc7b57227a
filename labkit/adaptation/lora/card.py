"""What a fine-tuning leaves in its folder: weights, log, card.json for programs and README.md for people."""

import importlib.metadata
import shlex
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import nn

from labkit.adaptation.lora.base import CPU_QUANT
from labkit.adaptation.lora.run import LoraRun, unwritable
from labkit.adaptation.lora.settings import PRESETS, LoraSettings
from labkit.errors import LabError
from labkit.evidence import csv_text, json_text, read_json, sha256_of, write_atomically
from labkit.layout import EMBEDDED, MODELS, display_path
from labkit.training.log import LOG_COLUMNS, LogRow

CARD, LOG = "card.json", "training_log.csv"
VERSIONS = ("torch", "transformers", "peft", "bitsandbytes", "trl")


def write_run(out: Path, done: LoraRun, tuned: nn.Module, tokenizer) -> None:
    """The weights first and the card last: a folder with a card is whole."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        _save_weights(out, done, tuned, tokenizer)
    except OSError as error:
        raise unwritable(out, error) from error
    write_atomically(out / LOG, csv_text(map(_rounded, done.rows), LOG_COLUMNS).encode())
    card = card_of(done)
    write_atomically(out / "README.md", readme_of(card).encode())
    write_atomically(out / CARD, json_text(card).encode())


def _save_weights(out: Path, done: LoraRun, tuned: nn.Module, tokenizer) -> None:
    if done.settings.full:
        save_checkpoint(tuned, tokenizer, out, stored_type(done.base.source))
        return
    for config in tuned.peft_config.values():
        config.base_model_name_or_path = done.base.place  # never this machine's folder
        config.revision = None if isinstance(done.base.source, Path) else done.base.revision
    tuned.save_pretrained(out, save_embedding_layers=False)


def save_checkpoint(model: nn.Module, tokenizer, out: Path, dtype: torch.dtype) -> None:
    """A folder that plain transformers, the ONNX export and the GGUF export read."""
    model.to(dtype).save_pretrained(out)
    tokenizer.save_pretrained(out)


def stored_type(source: Path | str) -> torch.dtype:
    """The number format of a checkpoint's weights, as its configuration says; fp32 where it says nothing."""
    from transformers import AutoConfig

    dtype = AutoConfig.from_pretrained(source, trust_remote_code=False).dtype or torch.float32
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def card_of(done: LoraRun) -> dict:
    """Everything that the run was made of and what came out. Losses are nats per scored token."""
    first, last = done.rows[0], done.rows[-1]
    return {
        "kind": "checkpoint" if done.settings.full else "adapter",
        "base_model": done.base.name,
        "base_revision": done.base.revision,
        "files": _files(done),
        "held_out_chats": len(done.prepared.held_out),
        "replayed_chats_in_an_epoch": done.prepared.mixture.replayed,
        "settings": asdict(done.settings) | {"trainer": done.trainer},
        "steps": last.step,
        "kept_step": done.kept_step,
        "trainable_parameters": done.trainable,
        "total_parameters": done.total,
        "held_out_loss_before": round(first.val_loss, 4),
        "held_out_loss_after": round(done.kept_loss, 4),
        "train_loss_last": round(last.train_loss, 4),
        "seconds": done.seconds,
        "device": done.device,
        "precision": done.precision.name,
        "precision_reason": done.precision.reason,
        "batches": "packed" if done.packed else "padded",
        "threads": torch.get_num_threads(),
        "peak_memory_mib": done.peak_memory_mib,
        "versions": versions(),
        "command": repeat_command(done),
    }


def _files(done: LoraRun) -> dict[str, dict]:
    named = {name: path for name, path in asdict(done.sources).items() if path}
    return {
        name: {"file": display_path(path), "sha256": sha256_of(Path(path)), "chats": _lines(path)}
        for name, path in named.items()
    }


def _lines(path: Path) -> int:
    return len(Path(path).read_text(encoding="utf-8").splitlines())


def versions() -> dict[str, str]:
    """The installed versions of what a run depends on."""
    found = {}
    for package in VERSIONS:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def repeat_command(done: LoraRun) -> str:
    """The command that makes this run again: every option that is not as the command's own preset has it.

    A share of chats that there are none of is left out, as the command refuses it.
    """
    without = {"held_out_share"} if done.sources.held_out else set()
    without |= set() if done.sources.replay else {"replay_share"}
    words = ["labkit", "lora", display_path(done.sources.data), "--out", "DIR", "--device", done.device]
    if done.base.source != MODELS / EMBEDDED:
        words += ["--model", done.base.place]
    for name in ("replay", "held_out"):
        if path := getattr(done.sources, name):
            words += [f"--{name.replace('_', '-')}", display_path(path)]
    if done.trainer != "labkit":
        words += ["--trainer", done.trainer]
    for field in fields(LoraSettings):
        value = getattr(done.settings, field.name)
        if field.name not in without and value != getattr(PRESETS["mini"], field.name):
            words += _option(field.name, value)
    return shlex.join(words)


def _option(name: str, value: object) -> list[str]:
    option = f"--{name.replace('_', '-')}"
    if value is True:
        return [option]
    return [option, ",".join(value) if isinstance(value, tuple) else str(value)]


def readme_of(card: dict) -> str:
    """The card for people, in the form that a hub shows: what it is, what it was made of, and how to use it."""
    settings, data = card["settings"], card["files"]["data"]
    share = card["trainable_parameters"] / card["total_parameters"]
    lines = [
        f"- Base model: {card['base_model']}, revision {card['base_revision']}",
        *(
            f"- {name.replace('_', ' ').capitalize()}: {file['file']}, {file['chats']} chats, sha256 {file['sha256']}"
            for name, file in card["files"].items()
        ),
        f"- Held out from training: {card['held_out_chats']} chats",
        f"- Trained parameters: {card['trainable_parameters']:,} of {card['total_parameters']:,} ({share:.2%})",
        f"- Held-out loss: {card['held_out_loss_before']:.4f} before, {card['held_out_loss_after']:.4f} after "
        f"(step {card['kept_step']} of {card['steps']}), nats per scored token",
        f"- Time: {card['seconds']} s on {card['device']}",
        f"- Computed in {card['precision']}: {card['precision_reason']}",
        f"- Seed: {settings['seed']}, trainer: {settings['trainer']}",
        f"- Versions: {', '.join(f'{name} {version}' for name, version in card['versions'].items())}",
        f"- Repeat it: {card['command']}",
    ]
    if settings["quant"] != "none" and card["device"] == "cpu":
        lines.append(f"- {CPU_QUANT}")
    kind = "full fine-tuning" if card["kind"] == "checkpoint" else _kind(settings)
    return (
        f"---\nbase_model: {card['base_model']}\n"
        + ("" if card["kind"] == "checkpoint" else "library_name: peft\n")
        + f"---\n\n# {Path(data['file']).stem}: {kind}\n\n"
        + "\n".join(lines)
        + "\n\n"
        + _use(card)
    )


def _kind(settings: dict) -> str:
    name = "LoRA" if settings["quant"] == "none" else f"QLoRA ({settings['quant']})"
    return f"{name}, r {settings['r']}, alpha {settings['alpha']}"


def _use(card: dict) -> str:
    if card["kind"] == "checkpoint":
        return "A plain checkpoint. What it learned replaced what the base knew: measure both on the same cases.\n"
    return (
        "It holds the adapter only and works on the base model of that revision alone.\n"
        "`labkit merge FOLDER --out DIR` makes a plain checkpoint of both.\n"
        "A low loss is no proof: measure it and the base on the same cases.\n"
    )


def read_card(folder: Path) -> dict:
    """card.json of an adapter's folder. Raises LabError for a folder that is none of ours."""
    if not (Path(folder) / CARD).is_file():
        raise LabError(f"{Path(folder).name} holds no {CARD}", "give the folder that labkit lora wrote")
    card = read_json(Path(folder) / CARD)
    if not isinstance(card, dict) or not {"kind", "base_model", "base_revision"} <= card.keys():
        raise LabError(f"{CARD} of {Path(folder).name} is not a card of labkit lora", "train the adapter again")
    return card


def _rounded(row: LogRow) -> dict:
    return asdict(row) | {key: f"{getattr(row, key):.4f}" for key in ("train_loss", "val_loss", "grad_norm")}
