"""The training loop: next-token prediction with AdamW, warm-up and a cosine schedule, and held-out loss on the way.

It takes any module that maps token ids (batch, time) to logits (batch, time, vocab), directly as our GPT-2 does or in a
`.logits` field as transformers' models do, so one loop trains the learner's first model and the shipped one.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from labkit.errors import LabError

IGNORED = -100  # a target that does not count in the loss
DRAWS = 100  # batches drawn in a row without one scored token, after which the windows are too short for the chats
LOG_COLUMNS = (
    "step",
    "train_loss",
    "val_loss",
    "learning_rate",
    "grad_norm",
    "tokens_per_second",
    "device",
    "elapsed_seconds",
)


@dataclass(frozen=True)
class TrainSettings:
    """What a run is made of. The rate rises linearly over `warmup_steps`, then falls along a cosine to a tenth.

    `betas`, `weight_decay` and `grad_clip` are those of GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix B).
    """

    steps: int
    batch_size: int = 12
    block_size: int = 64
    learning_rate: float = 2e-3
    warmup_steps: int = 20
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float = 1.0
    log_every: int = 25
    eval_batches: int = 8
    seed: int = 13


@dataclass(frozen=True)
class LogRow:
    """One row of training_log.csv. Losses are nats per scored token; `train_loss` is the mean since the last row.

    In the row before the first step there is no such mean, and both losses are the held-out one.
    """

    step: int
    train_loss: float
    val_loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_second: float
    device: str
    elapsed_seconds: float


@dataclass(frozen=True)
class TokenData:
    """A text as token ids, shape (n,).

    `scored` marks the tokens that count as targets (all of them when None; only the assistant's in chats).
    `starts` are the places where a window may begin (anywhere when None; at the start of a chat in chats).
    """

    tokens: np.ndarray
    scored: np.ndarray | None = None
    starts: np.ndarray | None = None

    def batch(self, rng: np.random.Generator, batch_size: int, block_size: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets, each (batch_size, block_size): the target of a token is the token after it.

        Raises LabError for a text shorter than one window, and for windows too short to hold any scored token.
        """
        last = len(self.tokens) - block_size - 1
        if last < 0:
            raise LabError(
                f"the text has {len(self.tokens)} tokens and one training window needs {block_size + 1}",
                "give a longer text, or a smaller block size",
            )
        for _ in range(DRAWS):
            inputs, targets = self._draw(rng, batch_size, block_size, last)
            if (targets != IGNORED).any():
                return inputs, targets
        raise LabError(f"{DRAWS} batches of {block_size} tokens reached no answer", "raise the block size")

    def _draw(self, rng: np.random.Generator, batch_size: int, block_size: int, last: int) -> tuple[Tensor, Tensor]:
        allowed = None if self.starts is None else self.starts[self.starts <= last]
        begin = rng.integers(0, last + 1, batch_size) if allowed is None else rng.choice(allowed, batch_size)
        at = begin[:, None] + np.arange(block_size + 1)
        window = torch.from_numpy(self.tokens[at].astype(np.int64))
        targets = window[:, 1:]
        if self.scored is not None:
            targets = targets.masked_fill(~torch.from_numpy(self.scored[at[:, 1:]]), IGNORED)
        return window[:, :-1].contiguous(), targets.contiguous()


def train(
    model: nn.Module,
    training: TokenData,
    held_out: TokenData,
    settings: TrainSettings,
    device: str,
    on_row: Callable[[LogRow], None] = lambda row: None,
) -> list[LogRow]:
    """Train `model` in place and return the log: a row before the first step, every `log_every` steps, and at the end.

    Raises LabError when the loss is no longer a number. Losses stay on the device between rows, so a GPU is never
    made to wait for the log.
    """
    model.to(device).train()
    optimizer = make_optimizer(model, settings)
    rng = np.random.default_rng(settings.seed)
    started = mark = time.perf_counter()
    first_loss = held_out_loss(model, held_out, settings, device)
    rows = [LogRow(0, first_loss, first_loss, 0.0, 0.0, 0.0, device, 0.0)]
    on_row(rows[0])
    losses: list[Tensor] = []
    for step in range(1, settings.steps + 1):
        rate = learning_rate(step, settings)
        batch = training.batch(rng, settings.batch_size, settings.block_size)
        loss, norm = _train_step(model, optimizer, batch, rate, settings, device)
        losses.append(loss)
        if step % settings.log_every and step != settings.steps:
            continue
        mean = torch.stack(losses).mean().item()
        if not math.isfinite(mean):
            raise LabError(f"the loss is no longer a number at step {step}", "lower the learning rate and run again")
        now = time.perf_counter()
        speed = len(losses) * settings.batch_size * settings.block_size / (now - mark)
        validation = held_out_loss(model, held_out, settings, device)
        row = LogRow(step, mean, validation, rate, float(norm), round(speed, 1), device, round(now - started, 2))
        rows.append(row)
        on_row(row)
        losses, mark = [], time.perf_counter()
    model.eval()
    return rows


def _train_step(model, optimizer, batch, rate: float, settings: TrainSettings, device: str) -> tuple[Tensor, Tensor]:
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = loss_of(model, *batch, device)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), settings.grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach(), norm


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves biases and norms alone, so that decay never shrinks a scale."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)


def learning_rate(step: int, settings: TrainSettings) -> float:
    """The rate at `step` (1-based): linear warm-up, then a cosine from the full rate to a tenth of it."""
    if step <= settings.warmup_steps:
        return settings.learning_rate * step / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor, device: str) -> Tensor:
    """Mean cross-entropy in nats over the scored targets."""
    out = model(inputs.to(device))
    logits = out if isinstance(out, Tensor) else out.logits
    return functional.cross_entropy(logits.flatten(0, 1).float(), targets.to(device).flatten(), ignore_index=IGNORED)


@torch.no_grad()
def held_out_loss(model: nn.Module, data: TokenData, settings: TrainSettings, device: str) -> float:
    """Loss on the same `eval_batches` windows each time, so that two rows of a log can be compared."""
    was_training = model.training
    model.eval()
    losses = [loss_of(model, *batch, device) for batch in _eval_batches(data, settings)]
    model.train(was_training)
    return torch.stack(losses).mean().item()


def _eval_batches(data: TokenData, settings: TrainSettings) -> Iterator[tuple[Tensor, Tensor]]:
    rng = np.random.default_rng(settings.seed + 1)
    for _ in range(settings.eval_batches):
        yield data.batch(rng, settings.batch_size, settings.block_size)
