"""What runs a model: the small interface that every backend has, so that answers are chosen alike on all of them.

A backend computes logits for rows that are decoded together. Which token is chosen from them, where an answer ends and
what keeps it to a form is decided above (answer.py), and is therefore the same for every backend.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Rows(Protocol):
    """The sequences under way. Rows join and leave between any two tokens."""

    def join(self, ids: Sequence[int]) -> Tensor:
        """Add a row for the prompt `ids` as the last one, and return its next token's logits, shape (vocab,)."""

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Give each row its token, in order, and return the logits of what comes next, shape (rows, vocab)."""

    def leave(self, row: int) -> None:
        """Forget row number `row`; the rows after it move up."""


class Network(Protocol):
    """A loaded model. `end_ids` end an answer; `vocabulary` is the number of logits for a token."""

    backend: str
    device: str
    device_reason: str
    dtype: str
    context_length: int
    vocabulary: int
    parameter_count: int
    end_ids: frozenset[int]

    def rows(self) -> Rows:
        """No rows yet. Rows of one network share what it remembers of the beginnings of prompts."""
