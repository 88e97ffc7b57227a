"""The training loop for chats: packed batches, loss over a step's scored tokens, early stop, small snapshots."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labkit.adaptation.lora.chats import EncodedChat, Mixture
from labkit.adaptation.lora.packing import PackedBatch, chat_loss, pack, scored_tokens
from labkit.adaptation.lora.settings import LoraSettings
from labkit.training.loop import Trainer
from labkit.training.settings import TrainSettings

EVALUATED_TOGETHER = 8  # held-out chats in one batch


class ChatBatches:
    """The batches of a run in their order. `position` is the step that comes next: the order follows from the seed."""

    def __init__(self, mixture: Mixture, batch_size: int, device: str, step: int = 0):
        self._mixture, self._size, self._device = mixture, batch_size, device
        self.position = {"step": step}
        self._waiting: list[PackedBatch] = []
        self.tokens = 0  # handed out so far

    def pieces(self) -> int:
        """Batches in the step that comes next, which are made ready."""
        if not self._waiting:
            chats = self._mixture.step(self.position["step"])
            total = scored_tokens(chats)
            groups = [chats[at : at + self._size] for at in range(0, len(chats), self._size)]
            self._waiting = [pack(group, self._device, scored_tokens(group) / total) for group in groups]
        return len(self._waiting)

    def next(self) -> PackedBatch:
        self.pieces()
        batch = self._waiting.pop(0)
        if not self._waiting:
            self.position = {"step": self.position["step"] + 1}
        self.tokens += batch.ids.numel()
        return batch

    def close(self) -> None:
        """Nothing runs ahead here."""


@dataclass
class Best:
    """The lowest held-out loss so far, the step it was seen at, and the trained weights of that step."""

    loss: float
    step: int
    weights: list[Tensor]


class ChatTrainer(Trainer):
    """labkit's loop over chats. Only what is trained is saved in a snapshot: an adapter is small, its base is not."""

    smaller = "give shorter chats, --quant nf4, --checkpointing or a smaller --r"

    def __init__(
        self,
        model: nn.Module,
        mixture: Mixture,
        held_out: Sequence[EncodedChat],
        settings: LoraSettings,
        numbers: TrainSettings,
        device: str,
        packed: bool,
    ):
        self._mixture, self._packed, self._patience = mixture, packed, settings.patience
        self._mark_tokens, self._in_step, self._best = 0, 1, None
        super().__init__(model, None, None, numbers, device)
        self._trained = [parameter for parameter in self.plain.parameters() if parameter.requires_grad]
        self.saved = nn.ParameterList(self._trained)
        self._chats_held_out = held_out_batches(held_out, device)

    @property
    def finished(self) -> bool:
        """After the last step, or when `patience` rows in a row brought no lower held-out loss."""
        return super().finished or self.stopped_early

    @property
    def stopped_early(self) -> bool:
        best = self._best
        return bool(self._patience and best and sum(row.step > best.step for row in self.rows) >= self._patience)

    def keep_best(self) -> None:
        """Put the weights of the lowest held-out loss back; nothing without patience."""
        if self._best:
            with torch.no_grad():
                for parameter, kept in zip(self._trained, self._best.weights, strict=True):
                    parameter.copy_(kept)

    @property
    def best_step(self) -> int:
        """The step whose weights the run ends with."""
        return self._best.step if self._best else self.done

    def state(self) -> dict:
        best = self._best
        kept = {"loss": best.loss, "step": best.step, "weights": best.weights} if best else {}
        return super().state() | {"best": kept}

    def load(self, state: dict) -> None:
        super().load(state)
        if state["best"]:
            best = state["best"]
            self._best = Best(best["loss"], best["step"], [kept.to(self.device) for kept in best["weights"]])

    def _backward(self, last: bool) -> Tensor:
        batch = self._batches.next()
        with self.precision.autocast(self.device):
            loss = chat_loss(self.model, batch, self._packed) * batch.weight
        self.scaler.scale(loss).backward()
        return loss.detach() * self._in_step  # the row's mean over a step's batches is then their weighted sum

    @property
    def _pieces(self) -> int:
        self._in_step = self._batches.pieces()
        return self._in_step

    @torch.no_grad()
    def held_out_loss(self) -> float:
        with self._within_memory(), self.precision.autocast(self.device):
            loss = mean_loss(self.model, self._chats_held_out, self._packed)
        if self._patience and (self._best is None or loss < self._best.loss):
            self._best = Best(loss, self.done, [parameter.detach().clone() for parameter in self._trained])
        return loss

    def _set_mark(self) -> None:
        super()._set_mark()
        self._mark_tokens = self._batches.tokens

    def _tokens_since_mark(self) -> int:
        return self._batches.tokens - self._mark_tokens

    def _mfu(self, tokens_per_second: float) -> str:
        return ""  # the count of `flops_per_token` holds only where every weight is trained

    def _compile_if_worth(self) -> None:
        """Never: chats differ in length, and each length would be compiled anew."""

    def _batches_from(self, position: dict | None) -> ChatBatches:
        step = position["step"] if position else 0
        return ChatBatches(self._mixture, self.settings.batch_size, self.device, step)


def held_out_batches(chats: Sequence[EncodedChat], device: str) -> list[PackedBatch]:
    """Each weighted by its share of all scored tokens."""
    chats, total = sorted(chats, key=len), scored_tokens(chats)
    groups = [chats[at : at + EVALUATED_TOGETHER] for at in range(0, len(chats), EVALUATED_TOGETHER)]
    return [pack(group, device, scored_tokens(group) / total) for group in groups]


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Sequence[PackedBatch], packed: bool) -> float:
    """Nats per scored token over all `batches`, without dropout."""
    was = model.training
    model.eval()
    losses = [chat_loss(model, batch, packed) * batch.weight for batch in batches]
    model.train(was)
    return torch.stack(losses).sum().item()


def train_settings(settings: LoraSettings, mixture: Mixture, longest: int, precision: str) -> TrainSettings:
    """The loop's own numbers for a run over `mixture`, computed in `precision`."""
    steps = settings.steps or max(1, round(settings.epochs * mixture.steps_per_epoch))
    return TrainSettings(
        steps=steps,
        batch_size=settings.batch_size,
        block_size=longest,
        learning_rate=settings.learning_rate,
        warmup_steps=max(1, round(settings.warmup_share * steps)),
        weight_decay=settings.weight_decay,
        betas=(0.9, 0.999),
        log_every=settings.log_every,
        seed=settings.seed,
        accumulate=settings.accumulate,
        precision=precision,
    )
