"""The same run with TRL's SFTTrainer: same chats in the same order, same mask, same schedule, its own loop."""

import tempfile
import time
from collections.abc import Callable

import torch
from torch import nn

from labkit.adaptation.lora.trainer import held_out_batches, mean_loss
from labkit.training.data import IGNORED
from labkit.training.log import LogRow
from labkit.training.optimizer import learning_rate, make_optimizer
from labkit.training.precision import Precision


def train_with_trl(
    tuned: nn.Module, tokenizer, prepared, device: str, precision: Precision, on_row: Callable[[LogRow], None]
) -> list[LogRow]:
    """Train `tuned` in place; the rows have the columns of our own log."""
    from trl import SFTTrainer

    optimizer = make_optimizer(tuned, prepared.numbers)
    full_rate = prepared.numbers.learning_rate
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: learning_rate(done + 1, prepared.numbers) / full_rate
    )
    log = _log_callback(tuned, prepared, device, precision, on_row)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            tuned,
            args=_arguments(folder, prepared.numbers, device, precision),
            train_dataset=_dataset(prepared),
            processing_class=tokenizer,
            optimizers=(optimizer, schedule),
            callbacks=[log],
        )
        trainer.train()
    tuned.eval()
    return log.rows


def _arguments(folder: str, numbers, device: str, precision: Precision):
    from trl import SFTConfig

    return SFTConfig(
        output_dir=folder,
        max_steps=numbers.steps,
        per_device_train_batch_size=numbers.batch_size,
        gradient_accumulation_steps=numbers.accumulate,
        max_grad_norm=numbers.grad_clip,
        logging_steps=numbers.log_every,
        train_sampling_strategy="sequential",  # our order, which the data set is in
        max_length=None,
        gradient_checkpointing=False,
        bf16=precision.name == "bf16",
        fp16=precision.name == "fp16",
        use_cpu=device == "cpu",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=numbers.seed,
        dataloader_num_workers=0,
    )


def _dataset(prepared):
    """Every chat of every step, in order. Needs datasets, which TRL brings."""
    from datasets import Dataset

    chats = [chat for step in range(prepared.numbers.steps) for chat in prepared.mixture.step(step)]
    labels = [[int(t) if s else IGNORED for t, s in zip(chat.ids, chat.scored, strict=True)] for chat in chats]
    return Dataset.from_dict({"input_ids": [chat.ids.tolist() for chat in chats], "labels": labels})


def _log_callback(tuned: nn.Module, prepared, device: str, precision: Precision, on_row: Callable[[LogRow], None]):
    """A callback of transformers' Trainer that makes our rows of its log, with our held-out loss."""
    from transformers import TrainerCallback

    batches = held_out_batches(prepared.held_out, device)

    class Log(TrainerCallback):
        def __init__(self):
            self.rows: list[LogRow] = []
            self._began, self._tokens = time.perf_counter(), 0

        def on_train_begin(self, args, state, control, **_):
            loss = self._held_out()
            self._add(LogRow(0, loss, loss, 0.0, 0.0, 0.0, "", device, 0.0))
            self._began = time.perf_counter()

        def on_step_end(self, args, state, control, **_):
            self._tokens += sum(map(len, prepared.mixture.step(state.global_step - 1)))

        def on_log(self, args, state, control, logs=None, **_):
            if "loss" not in (logs or {}):
                return
            seconds = time.perf_counter() - self._began
            speed = round(self._tokens / seconds, 1)  # of the whole run so far
            rate, norm = logs["learning_rate"], float(logs.get("grad_norm", 0.0))
            row = LogRow(state.global_step, logs["loss"], self._held_out(), rate, norm, speed, "", device, seconds)
            self._add(row)

        def _held_out(self) -> float:
            with precision.autocast(device):
                return mean_loss(tuned, batches, packed=False)

        def _add(self, row: LogRow) -> None:
            self.rows.append(row)
            on_row(row)

    return Log()
