"""The training loop: next-token prediction with AdamW, warm-up and a cosine schedule, and held-out loss on the way.

It takes any module that maps token ids (batch, time) to logits (batch, time, vocab), directly as our GPT-2 does or in a
`.logits` field as transformers' models do: the learner's first model, the shipped one, a PEFT-wrapped hub model.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from labkit.errors import LabError
from labkit.training.data import IGNORED, Batches, TokenData
from labkit.training.log import LogRow
from labkit.training.optimizer import learning_rate, make_optimizer
from labkit.training.parallel import (
    ALONE,
    World,
    average_gradients,
    gathered,
    load_whole_state,
    mean_over,
    spread,
    whole_state,
)
from labkit.training.precision import Precision, choose_precision
from labkit.training.settings import TrainSettings
from labkit.training.speed import flops_per_token, keep_freed_memory, out_of_memory, peak_flops, worth_compiling

EXPLODED = 1.5  # times the loss of even belief over the vocabulary: a train loss above it will not come back
COMPILE_AFTER = 10  # steps after which the time of a step is known


class Trainer:
    """One run at one step: model, optimizer, place in the data, and the log so far. `state` is all that a resume needs.

    Losses stay on the device between rows, so that a GPU is never made to wait for the log. `saved` is the module whose
    weights a snapshot holds: all of the model here, less of it where less is trained.
    """

    smaller = "choose a smaller --block-size or --size"  # what is left to do where one window is too much memory

    def __init__(
        self,
        model: nn.Module,
        training: TokenData,
        held_out: TokenData,
        settings: TrainSettings,
        device: str,
        world: World = ALONE,
    ):
        self.settings, self.device, self.world = settings, device, world
        if device == "cpu":
            keep_freed_memory()
        self.precision: Precision = choose_precision(settings.precision, device)
        self.done = 0
        with self._within_memory():
            self.plain = model.to(device).train()
            self.model = spread(self.plain, world, device)
        self.saved: nn.Module = self.plain
        self.optimizer = make_optimizer(self.model, settings)
        self.scaler = torch.amp.GradScaler(device, enabled=self.precision.scaled)
        self.flops = flops_per_token(self.plain, settings.block_size)
        self._training, self._held_out = training, held_out
        self._batches = self._batches_from(None)
        self.rows: list[LogRow] = []
        self._losses: list[Tensor] = []
        self._norm: Tensor | float = 0.0
        self.earlier_seconds, self._started = 0.0, time.perf_counter()
        self._mark, self._mark_step = self._started, 0

    def run(self, on_row: Callable[[LogRow], None], after_step: Callable[["Trainer"], None]) -> list[LogRow]:
        """Step until the last step: a row before the first, every `log_every`, and at the end.

        Raises LabError when the loss is no number or has exploded, and when memory runs out.
        """
        self._started = time.perf_counter()
        self._set_mark()
        compile_at = self.done + COMPILE_AFTER
        try:
            if not self.rows:
                self._first_row(on_row)
            while not self.finished:
                self.step()
                if self.done % self.settings.log_every == 0 or self.finished:
                    self._add_row(on_row)
                if self.done == compile_at:
                    self._compile_if_worth()
                began = time.perf_counter()
                after_step(self)
                self._mark += time.perf_counter() - began
        finally:
            self.close()
        self.plain.eval()
        return self.rows

    def step(self) -> None:
        """One optimizer step over `accumulate` batches."""
        rate = learning_rate(self.done + 1, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with self._within_memory():
            losses = [self._backward(last=left == 1) for left in range(self._pieces, 0, -1)]
            self.scaler.unscale_(self.optimizer)
            self._norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
        self._losses.append(torch.stack(losses).mean())
        self.done += 1

    @property
    def finished(self) -> bool:
        """Whether the last step is done."""
        return self.done >= self.settings.steps

    @property
    def _pieces(self) -> int:
        """Batches in the next step."""
        return self.settings.accumulate

    def _backward(self, last: bool) -> Tensor:
        average_gradients(self.model, self.world, last)
        inputs, targets = self._batches.next()
        with self.precision.autocast(self.device):
            loss = loss_of(self.model, inputs, targets)
        self.scaler.scale(loss / self.settings.accumulate).backward()
        return loss.detach()

    @contextlib.contextmanager
    def _within_memory(self) -> Iterator[None]:
        """Turns "out of memory", of which every device has its own, into the batch size to try."""
        try:
            yield
        except Exception as error:
            if not out_of_memory(error):
                raise
            batch, pieces = self.settings.batch_size, self.settings.accumulate
            windows = "one window" if batch == 1 else f"{batch} windows"
            what = f"a batch of {windows} does not fit into memory (step {self.done + 1})"
            smaller = f"--batch-size {batch // 2} --accumulate {2 * pieces}: as many tokens in each step"
            raise LabError(what, f"try {smaller}" if batch > 1 else self.smaller) from None

    def _first_row(self, on_row: Callable[[LogRow], None]) -> None:
        loss = self.held_out_loss()
        self.rows.append(LogRow(0, loss, loss, 0.0, 0.0, 0.0, "", self.device, 0.0))
        on_row(self.rows[0])
        self._set_mark()

    def _set_mark(self) -> None:
        """From here on speed is counted: the time of the held-out loss is not the time of a step."""
        self._mark, self._mark_step = time.perf_counter(), self.done

    def _add_row(self, on_row: Callable[[LogRow], None]) -> None:
        mean = self.mean_loss()
        now = time.perf_counter()
        speed = self._tokens_since_mark() / (now - self._mark)
        row = LogRow(
            step=self.done,
            train_loss=mean,
            val_loss=self.held_out_loss(),
            learning_rate=learning_rate(self.done, self.settings),
            grad_norm=float(self._norm),
            tokens_per_second=round(speed, 1),
            mfu=self._mfu(speed),
            device=self.device,
            elapsed_seconds=round(self.earlier_seconds + now - self._started, 2),
        )
        self.rows.append(row)
        on_row(row)
        self._losses = []
        self._set_mark()

    def _tokens_since_mark(self) -> int:
        batch = self.settings.batch_size * self.settings.block_size * self.settings.accumulate * self.world.size
        return (self.done - self._mark_step) * batch

    @property
    def pending(self) -> bool:
        """Whether there are steps since the last row."""
        return bool(self._losses)

    def mean_loss(self) -> float:
        """Mean train loss since the last row, over all processes. Raises LabError when the run has gone wrong."""
        mean = mean_over(torch.stack(self._losses).mean(), self.world).item()
        self._refuse_unsound(mean)
        return mean

    def check(self) -> None:
        """Raises LabError when the run has gone wrong, up to the update of the last step.

        The loss of a step is taken before its update, so an update that ruins the weights shows in the gradients' norm
        first. A scaler (fp16) leaves out such updates by itself.
        """
        if not self.precision.scaled and not math.isfinite(float(self._norm)):
            self._refuse_unsound(math.nan)
        if self._losses:
            self._refuse_unsound(self._losses[-1].item())
            self.mean_loss()

    def _refuse_unsound(self, loss: float) -> None:
        remedy = "lower the learning rate and run again"
        if not math.isfinite(loss):
            raise LabError(f"the loss is no longer a number at step {self.done}", remedy)
        if loss > EXPLODED * self._ignorance:
            what = f"the loss rose to {loss:.2f} by step {self.done}, and knowing nothing costs {self._ignorance:.2f}"
            raise LabError(what, remedy)

    @property
    def _ignorance(self) -> float:
        """The loss of even belief, ln(vocabulary), or the run's first held-out loss where that was higher.

        A trained model that goes on with a harder text may well lose more than at first: that is no explosion.
        """
        vocabulary = getattr(getattr(self.plain, "config", None), "vocab_size", 1)
        return max(math.log(vocabulary), self.rows[0].val_loss)

    def _mfu(self, tokens_per_second: float) -> float | str:
        peak = peak_flops(self.device)
        return round(self.flops * tokens_per_second / (peak * self.world.size), 4) if peak else ""

    def _compile_if_worth(self) -> None:
        """Compile when the steps that are left earn it back; where no compiler works, go on without."""
        self.wait()
        steps = self.done - self._mark_step
        if not steps or self.world.size > 1:
            return
        each = (time.perf_counter() - self._mark) / steps
        if worth_compiling(self.device, each, self.settings.steps - self.done):
            compiled = torch.compile(self.plain)
            inputs, targets = next(self._eval_batches())
            with contextlib.suppress(Exception), self.precision.autocast(self.device):
                loss_of(compiled, inputs.to(self.device), targets.to(self.device)).backward()
                self.model = compiled
            self.optimizer.zero_grad(set_to_none=True)
            self._set_mark()

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Loss on the same `eval_batches` windows each time, so that two rows of a log can be compared.

        In a world every process takes its share of them, and all get the mean.
        """
        self.model.eval()
        losses = []
        with self._within_memory(), self.precision.autocast(self.device):
            for inputs, targets in self._eval_batches():
                losses.append(loss_of(self.model, inputs.to(self.device), targets.to(self.device)))
        self.model.train()
        return mean_over(torch.stack(losses).mean(), self.world).item()

    def _eval_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        rng = np.random.default_rng(self.settings.seed + 1)
        size, block_size, shares = self.settings.batch_size, self.settings.block_size, self.world.size
        for _ in range(self.settings.eval_batches):
            inputs, targets = self._held_out.batch(rng, size * shares, block_size, shares)
            yield self.world.share(inputs), self.world.share(targets)

    def state(self) -> dict:
        """Tensors, numbers and text only, so that it loads weights-only. In a world every process must call this."""
        model, optimizer = whole_state(self.saved, self.optimizer, self.world)
        return {
            "step": self.done,
            "model": model,
            "optimizer": optimizer,
            "scaler": self.scaler.state_dict(),
            "positions": gathered(json.dumps(self._batches.position), self.world),
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if self.device == "cuda" else torch.zeros(0),
            "losses": torch.stack(self._losses).cpu() if self._losses else torch.zeros(0),
            "rows": [asdict(row) for row in self.rows],
            "elapsed": self.earlier_seconds + time.perf_counter() - self._started,
        }

    def load(self, state: dict) -> None:
        """Take up the run that `state` was taken of."""
        load_whole_state(self.saved, self.optimizer, self.world, state["model"], state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.close()
        self._batches = self._batches_from(json.loads(state["positions"][self.world.rank]))
        torch.set_rng_state(state["torch_rng"])
        if self.device == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"])
        self.done, self.rows = state["step"], [LogRow(**row) for row in state["rows"]]
        self._losses = list(state["losses"].to(self.device).unbind())
        self.earlier_seconds = state["elapsed"]

    def wait(self) -> None:
        """Until the device has done what it was given: before and after a time is taken."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def close(self) -> None:
        """End the thread that draws batches."""
        self._batches.close()

    def _batches_from(self, position: dict | None) -> Batches:
        """The batches from the run's beginning, or from where a snapshot was taken."""
        rng = np.random.default_rng(self.settings.seed)
        if position is not None:
            rng.bit_generator.state = position
        size, block_size = self.settings.batch_size, self.settings.block_size
        return Batches(self._training, rng, size, block_size, self.device, self.world)


def train(
    model: nn.Module,
    training: TokenData,
    held_out: TokenData,
    settings: TrainSettings,
    device: str,
    on_row: Callable[[LogRow], None] = lambda row: None,
) -> list[LogRow]:
    """Train `model` in place from beginning to end and return the log. Raises LabError as `Trainer.run` does."""
    return Trainer(model, training, held_out, settings, device).run(on_row, lambda trainer: None)


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats over the scored targets."""
    out = model(inputs)
    logits = out if isinstance(out, Tensor) else out.logits
    return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)
