"""What a network remembers of the beginnings of the last prompts."""

from collections.abc import Sequence

from torch import Tensor

SHORTEST_PREFIX = 16  # tokens; a shorter common beginning is not worth keeping
KEPT_PREFIXES = 4

Layers = list[tuple[Tensor, Tensor]]  # keys and values of each layer, (rows, heads, tokens, width of a head)


class Prefixes:
    """The beginnings of the last prompts, so that a system prompt that all requests share is read once."""

    def __init__(self):
        self._kept: list[tuple[list[int], Layers]] = []

    def longest(self, ids: Sequence[int]) -> Layers:
        """What is kept of the longest beginning of `ids`, all of it but the last token; empty when too short."""
        shared = [(common(ids[:-1], kept), layers) for kept, layers in self._kept]
        length, layers = max(shared, default=(0, []), key=lambda pair: pair[0])
        return [(k[:, :, :length], v[:, :, :length]) for k, v in layers] if length >= SHORTEST_PREFIX else []

    def keep(self, ids: Sequence[int], layers: Layers) -> None:
        """Keep the newest; a beginning that a newer one holds whole is dropped."""
        others = [pair for pair in self._kept if common(ids, pair[0]) < len(pair[0])]
        self._kept = [(list(ids), layers), *others][:KEPT_PREFIXES]


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """The number of tokens that two sequences begin with alike."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(first), len(second)))
