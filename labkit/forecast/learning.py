"""What training costs here: a few steps of the workbook's own loops, on the models and batches of the lessons."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from labkit.adaptation.lora.run import Sources, tune
from labkit.adaptation.lora.settings import PRESETS, LoraSettings
from labkit.forecast.timing import seconds_of
from labkit.forecast.units import Unit
from labkit.gpt2 import GPT2
from labkit.layout import DATA
from labkit.training.plan import MiniRun, prepare

SECONDS = 1.0  # for which each size is trained
STEPS = 3  # of a fine-tuning that are timed, after as many that warm up
ONE_CHAT = 1e-6  # a share so small that a single chat is held out
TUNINGS = {
    Unit.LORA_STEP: PRESETS["mini"],
    Unit.FULL_STEP: replace(PRESETS["mini"], full=True),
    Unit.NF4_STEP: replace(PRESETS["mini"], quant="nf4"),
}


def training_costs(device: str, batch_size: int) -> dict[Unit, float]:
    """Seconds for a text to be tokenized, and for a thousand training tokens of each size."""
    mini, costs = MiniRun(batch_size=batch_size), {}
    costs[Unit.PREPARE] = seconds_of(lambda: prepare(mini))
    for unit, run in ((Unit.MINI_TOKENS, mini), (Unit.TINY_TOKENS, MiniRun.of_size("tiny"))):
        costs[unit] = 1000 / _tokens_per_second(run, device)
    return costs


def _tokens_per_second(run: MiniRun, device: str) -> float:
    """Of the loop's own steps, after three that warm up."""
    prepared = prepare(run)
    torch.manual_seed(run.seed)
    trainer = prepared.trainer(GPT2(prepared.config), run, device)
    try:
        for _ in range(3):
            trainer.step()
        trainer.wait()
        first, started = trainer.done, time.perf_counter()
        while time.perf_counter() - started < SECONDS and not trainer.finished:
            trainer.step()
        trainer.wait()
        tokens = (trainer.done - first) * run.batch_size * run.block_size
        return tokens / (time.perf_counter() - started)
    finally:
        trainer.close()


def tuning_costs(device: str) -> dict[Unit, float]:
    """Seconds for a step of each way of fine-tuning, and for what is paid once: loading, encoding and saving."""
    costs = {}
    for unit, settings in TUNINGS.items():
        costs[unit], once = _step_and_rest(settings, device)
        costs.setdefault(Unit.TUNING, once)
    return costs


def _step_and_rest(settings: LoraSettings, device: str) -> tuple[float, float]:
    """Seconds of a step, after the first few, and seconds before the first step and after the last.

    One chat is held out, so that the losses between the steps cost next to nothing.
    """
    rows: list[float] = []
    numbers = replace(settings, steps=2 * STEPS, log_every=STEPS, held_out_share=ONE_CHAT)
    sources = Sources(DATA / "train.jsonl", DATA / "replay.jsonl")
    with tempfile.TemporaryDirectory(prefix="labkit-") as scratch:
        started = time.perf_counter()
        out = Path(scratch) / "run"
        tune(sources, out, settings=numbers, device=device, on_row=lambda _: rows.append(time.perf_counter()))
        ended = time.perf_counter()
    return (rows[-1] - rows[-2]) / STEPS, ended - started - (rows[-1] - rows[0])
