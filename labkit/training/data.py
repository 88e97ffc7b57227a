"""Token data on disk or in memory, and the batches that a loop draws from it."""

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from labkit.errors import LabError
from labkit.evidence import write_atomically
from labkit.layout import STATE
from labkit.training.parallel import ALONE, World

IGNORED = -100  # a target that does not count in the loss
DRAWS = 100  # batches drawn in a row without one scored token, after which the windows are too short for the chats


@dataclass(frozen=True)
class TokenData:
    """A text as token ids, shape (n,): an array, or a file that is mapped into memory and never read whole.

    `scored` marks the tokens that count as targets (all of them when None; only the assistant's in chats).
    `starts` are the places where a window may begin (anywhere when None; at the start of a chat in chats).
    """

    tokens: np.ndarray
    scored: np.ndarray | None = None
    starts: np.ndarray | None = None

    def batch(
        self, rng: np.random.Generator, batch_size: int, block_size: int, shares: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Inputs and targets, each (batch_size, block_size): the target of a token is the token after it.

        Each of `shares` equal parts of the batch has a scored token: several processes take one each.
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
            if self.scored is None or all((part != IGNORED).any() for part in targets.chunk(shares)):
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


class Batches:
    """Batches in a fixed order, the next one drawn by a thread while a step uses the last; in a world, one's share.

    `position` is the generator's state after the batch handed out last, so that a run which is resumed there draws
    what the interrupted run would have drawn, whatever the thread had drawn ahead.
    """

    def __init__(
        self,
        data: TokenData,
        rng: np.random.Generator,
        batch_size: int,
        block_size: int,
        device: str,
        world: World = ALONE,
    ):
        self._data, self._rng, self._device, self._world = data, rng, device, world
        self._shape = (batch_size * world.size, block_size, world.size)
        self._thread = ThreadPoolExecutor(1, "batches")
        self.position = rng.bit_generator.state
        self._ahead = self._thread.submit(self._draw)

    def next(self) -> tuple[Tensor, Tensor]:
        (inputs, targets), self.position = self._ahead.result()
        self._ahead = self._thread.submit(self._draw)
        return inputs.to(self._device, non_blocking=True), targets.to(self._device, non_blocking=True)

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _draw(self) -> tuple[tuple[Tensor, Tensor], dict]:
        pair = tuple(map(self._world.share, self._data.batch(self._rng, *self._shape)))
        if self._device == "cuda":
            pair = tuple(tensor.pin_memory() for tensor in pair)
        return pair, self._rng.bit_generator.state


def token_file(tokenizer: Tokenizer, text: str) -> Path:
    """`text` as token ids in an .npy file, made once for each tokenizer and text and found again by their hashes.

    Ids are uint16 up to 65,536 entries and uint32 above.
    """
    key = hashlib.sha256(f"{tokenizer.to_str()}\0{text}".encode()).hexdigest()[:16]
    path = STATE / "tokens" / f"{key}.npy"
    if not path.exists():
        kind = np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.uint32
        write_atomically(path, _npy(np.array(tokenizer.encode(text).ids, dtype=kind)))
    return path


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def read_tokens(path: Path) -> np.ndarray:
    """The ids of a token file, mapped into memory. Raises LabError for a file that is no such array."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise LabError(f"{path.name} is not a token file: {error}", "delete it; it is made again") from None
