"""One answer while it is made: tokens are chosen, become text, and stop where the request says."""

import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.decoding import Sampling
from labkit.generation.constraint import Constraint
from labkit.generation.sampling import choose_token, penalised
from labkit.generation.text import GrowingText


@dataclass(frozen=True)
class TokenScore:
    """A chosen token as text, its log-probability, the likeliest tokens at its place, best first, and its place: the
    characters of the answer before it."""

    text: str
    logprob: float
    likeliest: tuple[tuple[str, float], ...]
    offset: int


@dataclass(frozen=True)
class Completion:
    """One answer. Token counts are the tokenizer's own; times are seconds of wall clock.

    `finish_reason` is "stop" (end token or stop text) or "length" (max_tokens, or the context, is used up).
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    seconds: float
    first_token_seconds: float
    scores: tuple[TokenScore, ...] = ()


class Answer:
    """The state of one answer between two tokens. `most` is the number of tokens after which it ends in any case.

    Special tokens are no text, but for `kept`: a family may begin its tool calls with one.

    `take` gives it tokens and `piece` tells what they say; a reader that is slower than the tokens asks for a piece of
    several. A tail that may still become a stop text, or that is half a UTF-8 character, is held back, so that a piece
    once given is never taken back.
    """

    def __init__(
        self,
        tokenizer,
        prompt_tokens: int,
        sampling: Sampling,
        end_ids: Collection[int],
        most: int,
        constraint: Constraint | None = None,
        kept: str = "",
    ):
        self._tokenizer, self._prompt_tokens, self._sampling = tokenizer, prompt_tokens, sampling
        self._end_ids, self._most, self._constraint = end_ids, most, constraint
        left_out = set(tokenizer.all_special_ids) - {tokenizer.convert_tokens_to_ids(kept) if kept else None}
        self._growing = GrowingText(tokenizer, left_out)
        self._generator = torch.Generator("cpu").manual_seed(sampling.seed)
        self._made: list[int] = []
        self._counts: Counter = Counter()
        self._cut: int | None = None  # where a stop text begins
        self._sent = 0
        self._started, self._first = time.perf_counter(), 0.0
        self._scores: list[TokenScore] = []
        self.finish_reason = ""

    @property
    def last(self) -> int:
        """The token that was chosen last."""
        return self._made[-1]

    @property
    def tokens(self) -> int:
        """How many tokens the answer has."""
        return len(self._made)

    def take(self, logits: Tensor) -> None:
        """Choose the next token from `logits`, shape (vocab,). Sets `finish_reason` when this was the last one."""
        logits = logits.float().cpu()
        token = self._choose(logits)
        self._first = self._first or time.perf_counter() - self._started
        if token in self._end_ids:
            self.finish_reason = "stop"
            return
        self._made.append(token)
        self._counts[token] += 1
        if self._sampling.top_logprobs is not None:
            self._scores.append(self._score(logits, token))
        self._growing.add(token)
        if self._sampling.stop:
            self._cut = first_stop(self._growing.text, self._sampling.stop)
        if self._cut is not None or (self._constraint is not None and self._constraint.complete):
            self.finish_reason = "stop"
        elif len(self._made) == self._most:
            self.finish_reason = "length"

    def piece(self) -> str:
        """The text that became certain since the last piece; empty while it is held back."""
        text = self._growing.text[: self._cut]
        certain = len(text) if self.finish_reason else len(text) - held_back(text, self._sampling.stop)
        start, self._sent = self._sent, max(self._sent, certain)
        return text[start : self._sent]

    def scores(self, since: int) -> list[TokenScore]:
        """The scores of the tokens from number `since` on; none where the request asked for none."""
        return self._scores[since:]

    def completion(self) -> Completion:
        """The answer, finished or not."""
        seconds = time.perf_counter() - self._started
        return Completion(
            self._growing.text[: self._cut],
            self._prompt_tokens,
            len(self._made),
            self.finish_reason,
            seconds,
            self._first or seconds,
            tuple(self._scores),
        )

    def _choose(self, logits: Tensor) -> int:
        logits = penalised(logits, self._sampling, self._counts)
        if self._constraint is None:
            return choose_token(logits, self._sampling, self._generator)
        token = choose_token(self._constraint.allowed(logits), self._sampling, self._generator)
        self._constraint.take(token)
        return token

    def _score(self, logits: Tensor, token: int) -> TokenScore:
        """Of the network's own belief: before penalties, temperature and constraint."""
        logprobs = logits.log_softmax(-1)
        best = logprobs.topk(self._sampling.top_logprobs or 0)
        likeliest = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return TokenScore(
            self._tokenizer.decode([token]),
            logprobs[token].item(),
            tuple((self._tokenizer.decode([number]), value) for number, value in likeliest),
            len(self._growing.text.rstrip("\ufffd")),
        )


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the earliest stop text begins in `text`, or None."""
    found = [at for stop in stops if stop and (at := text.find(stop)) >= 0]
    return min(found, default=None)


def held_back(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text` may still change: half a character, or the beginning of a stop text."""
    broken = len(text) - len(text.rstrip("\ufffd"))
    partial = (n for stop in stops for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n]))
    return max(broken, max(partial, default=0))
