"""What a network remembers of the beginnings of the last prompts."""

from collections.abc import Sequence
from itertools import accumulate

from torch import Tensor

SHORTEST_PREFIX = 16  # tokens; a shorter common beginning is not worth keeping
KEPT_PREFIXES = 32
KEPT_BYTES = 64 * 2**20  # of keys and values in all; the newest beginning is kept however large it is

Layers = list[tuple[Tensor, Tensor]]  # keys and values of each layer, (rows, heads, tokens, width of a head)


class Prefixes:
    """The beginnings of the last prompts, so that a system prompt that all requests share is read once.

    `adapter` is what read a prompt: keys and values that one adapter computed mean nothing to another, or to the base.
    """

    def __init__(self):
        self._kept: list[tuple[str, list[int], Layers]] = []

    def longest(self, ids: Sequence[int], adapter: str = "") -> Layers:
        """What is kept of the longest beginning of `ids`, all of it but the last token; empty when too short."""
        shared = [(common(ids[:-1], kept), layers) for reader, kept, layers in self._kept if reader == adapter]
        length, layers = max(shared, default=(0, []), key=lambda pair: pair[0])
        return [(k[:, :, :length], v[:, :, :length]) for k, v in layers] if length >= SHORTEST_PREFIX else []

    def keep(self, ids: Sequence[int], layers: Layers, adapter: str = "") -> None:
        """Keep the newest; a beginning that a newer one holds whole is dropped, the oldest where there is no room."""
        others = [held for held in self._kept if held[0] != adapter or common(ids, held[1]) < len(held[1])]
        kept = [(adapter, list(ids), layers), *others][:KEPT_PREFIXES]
        room = sum(size <= KEPT_BYTES for size in accumulate(_bytes(layers) for *_, layers in kept))
        self._kept = kept[: max(1, room)]


def _bytes(layers: Layers) -> int:
    return sum(keys.nbytes + values.nbytes for keys, values in layers)


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """The number of tokens that two sequences begin with alike, found by halving: slices are compared in C."""
    same, most = 0, min(len(first), len(second))
    while same < most:
        middle = (same + most + 1) // 2
        if list(first[same:middle]) == list(second[same:middle]):
            same = middle
        else:
            most = middle - 1
    return same
