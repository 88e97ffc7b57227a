"""What runs a model: the small interface that every backend has, so that answers are chosen alike on all of them.

A backend computes logits for rows that are decoded together. Which token is chosen from them, where an answer ends and
what keeps it to a form is decided above (answer.py), and is therefore the same for every backend.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

SMALL = 30_000_000  # parameters; up to here a pass is over as soon with one thread as with two (measured on two cores)


@dataclass(frozen=True, eq=False)
class Images:
    """The images of one prompt as the network takes them, in the order of their placeholders.

    `pixels` has shape (patches, numbers of a patch), `grid` (images, 3): patches in time, height and width.
    """

    pixels: Tensor
    grid: Tensor


class Rows(Protocol):
    """The sequences under way. Rows join and leave between any two tokens."""

    def join(self, ids: Sequence[int], images: Images | None = None, adapter: str = "") -> Tensor:
        """Add a row for the prompt `ids` as the last one, and return its next token's logits, shape (vocab,).

        Only a model that came with a `Vision` is given images, and only one that was loaded with adapters the name of
        one; the rows of other backends need not take them.
        """

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Give each row its token, in order, and return the logits of what comes next, shape (rows, vocab)."""

    def leave(self, row: int) -> None:
        """Forget row number `row`; the rows after it move up."""


class Network(Protocol):
    """A loaded model. `end_ids` end an answer; `vocabulary` is the number of logits for a token.

    One that reads images has its `Vision` as `vision`.
    """

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


def threads_for(parameter_count: int) -> int:
    """How many threads a pass of a model on the CPU is worth: a small one leaves the others to the server around it."""
    return 1 if parameter_count <= SMALL else torch.get_num_threads()


@contextlib.contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """torch computes with `number` threads inside; what trains in the same process keeps its own number outside.

    Two threads wait for each other at every operation, and where another program takes one of the two processors, the
    wait is a hundred times the work.
    """
    before = torch.get_num_threads()
    if before == number:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
