"""Several sequences that are decoded together: one pass of the network gives each of them its next token.

A pass over one row of a small model costs nearly what a pass over eight does, so a server that decodes its requests
together answers eight in little more than the time of one. Rows join and leave between any two tokens (continuous
batching; Yu et al. 2022, "Orca", OSDI).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from labkit.generation.network import Images, threads_for, torch_threads
from labkit.generation.prefixes import Layers, Prefixes

if TYPE_CHECKING:
    from labkit.generation.adapters import Adapters


ROOM = 64  # tokens for which memory is taken beforehand


class Batch:
    """The rows under way and what the network remembers of them.

    Rows of unequal length are padded on the left, and the padding is masked. `_slots[row]` is where in the memory a row
    lies; when one leaves, the last slot moves into its place. A model whose memory is not plain keys and values of
    every token (sliding windows, state spaces) is decoded row by row: slower, and the same answers.

    The model is always told the positions. An image takes fewer positions than tokens (M-RoPE), so that each row has
    its own next position; what the model itself remembers of that is overwritten by the next prompt.

    With `adapters` each row has one of them, or none, and all are decoded together.
    """

    def __init__(self, model: PreTrainedModel, prefixes: Prefixes | None = None, adapters: "Adapters | None" = None):
        self._model, self._prefixes, self._adapters = model, prefixes, adapters
        self._threads = threads_for(model.num_parameters())
        self._slots: list[int] = []
        self._lengths: list[int] = []  # of each slot
        self._positions: list[int] = []  # of each slot's next token
        self._adapted: list[str] = []  # each slot's adapter
        self._cache: DynamicCache | None = None
        self._apart: list[object] | None = None  # caches of rows that cannot be put together

    def __len__(self) -> int:
        return len(self._slots)

    @torch.inference_mode()
    def join(self, ids: Sequence[int], images: Images | None = None, adapter: str = "") -> Tensor:
        """Add a row for the prompt `ids` as the last one, and return its next token's logits, shape (vocab,).

        A prompt with images shares its beginning with no other: equal placeholders may stand for unequal pixels.
        """
        prefixes = None if images else self._prefixes
        held = prefixes.longest(ids, adapter) if prefixes else []
        cache, known = (cache_of(held), held[0][0].shape[2]) if held else (None, 0)
        prompt = self._seen(ids, images) if images else self._read(ids, known)
        out = self._run([adapter], **prompt, past_key_values=cache, logits_to_keep=1)
        cache = out.past_key_values
        if not plain(cache):
            self._apart = [*(self._apart or []), cache]
        else:
            if prefixes is not None:
                prefixes.keep(ids, layers_of(cache), adapter)
            if self._slots:
                merge(self._cache, cache)
            else:
                self._cache = roomy(cache)
        self._slots.append(len(self._slots))
        self._lengths.append(len(ids))
        self._positions.append(int(prompt["position_ids"].max()) + 1)
        self._adapted.append(adapter)
        return out.logits[0, -1]

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """Give each row its token, in order, and return the logits of what comes next, shape (rows, vocab)."""
        positions = self._tensor([[position] for position in self._positions])
        ids = torch.empty_like(positions)
        ids[self._slots, 0] = self._tensor(tokens)
        if self._apart is not None:
            rows = zip(([name] for name in self._adapted), ids.split(1), positions.split(1), self._apart, strict=True)
            logits = torch.cat([self._pass(*row).logits[:, -1] for row in rows])
        else:
            logits = self._pass(self._adapted, ids, positions, self._cache, self._mask()).logits[:, -1]
        self._lengths = [length + 1 for length in self._lengths]
        self._positions = [position + 1 for position in self._positions]
        return logits[self._slots]

    @torch.inference_mode()
    def leave(self, row: int) -> None:
        """Forget row number `row`; the rows after it move up."""
        gap, last = self._slots.pop(row), len(self._slots)
        kept = [self._lengths, self._positions, self._adapted, *filter(None, [self._apart])]
        ends = [values.pop() for values in kept]
        if gap != last:
            self._slots[self._slots.index(last)] = gap
            for values, end in zip(kept, ends, strict=True):
                values[gap] = end
        if not self._slots:
            self._cache = None
        elif self._apart is None:
            longest = max(self._lengths)
            for layer in self._cache.layers:
                layer.keys, layer.values = _left(layer.keys, gap, longest), _left(layer.values, gap, longest)

    def _read(self, ids: Sequence[int], known: int) -> dict[str, Tensor]:
        """What the model is given of a prompt of text of which it remembers the first `known` tokens."""
        positions = list(range(known, len(ids)))
        return {"input_ids": self._tensor([ids[known:]]), "position_ids": self._tensor([positions])}

    def _seen(self, ids: Sequence[int], images: Images) -> dict[str, Tensor]:
        """What the model is given of a prompt with images; positions in time, height and width: (3, 1, tokens)."""
        tokens, grid = self._tensor([ids]), images.grid.to(self._model.device)
        kinds = (tokens == self._model.config.image_token_id).int()
        positions, _ = self._model.model.get_rope_index(tokens, kinds, image_grid_thw=grid)
        pixels = images.pixels.to(self._model.device)
        return {"input_ids": tokens, "position_ids": positions, "pixel_values": pixels, "image_grid_thw": grid}

    def _pass(self, adapters: Sequence[str], ids: Tensor, positions: Tensor, cache, mask: Tensor | None = None):
        return self._run(adapters, input_ids=ids, position_ids=positions, past_key_values=cache, attention_mask=mask)

    def _run(self, adapters: Sequence[str], **inputs):
        inputs["use_cache"] = True
        with torch_threads(self._threads):
            return self._model(**inputs) if self._adapters is None else self._adapters.run(adapters, inputs)

    def _mask(self) -> Tensor | None:
        """What is added to the scores of attention, shape (rows, 1, 1, tokens): the least number in a row's padding, 0
        at its tokens, the one that is given now included; None without padding. transformers takes four dimensions as
        they are, and need not make them of ones and zeros at each step.
        """
        longest = max(self._lengths)
        if min(self._lengths) == longest:
            return None
        padding = self._tensor([longest - length for length in self._lengths])[:, None]
        places = torch.arange(longest + 1, device=padding.device)
        mask = torch.zeros(len(padding), longest + 1, dtype=self._model.dtype, device=padding.device)
        return mask.masked_fill_(places < padding, torch.finfo(mask.dtype).min)[:, None, None]

    def _tensor(self, values: Sequence) -> Tensor:
        return torch.tensor(values, device=self._model.device)


class RoomyLayer(DynamicLayer):
    """Keys and values in memory with room for the tokens to come: a step writes its own and copies no others."""

    _buffers: tuple[Tensor, ...] = ()
    _filled: Tensor | None = None  # the keys as the last update left them; any others are not in the buffers

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        length, end = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if self._filled is not self.keys or end > self._buffers[0].shape[2]:
            self._buffers = tuple(_with_room(old, end + ROOM) for old in (self.keys, self.values))
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, length:end] = new
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        self._filled = self.keys
        return self.keys, self.values


def roomy(cache: DynamicCache) -> DynamicCache:
    """`cache` with layers that have room, in place."""
    for number, layer in enumerate(cache.layers):
        cache.layers[number] = grown = RoomyLayer()
        grown.lazy_initialization(layer.keys, layer.values)
        grown.keys, grown.values = layer.keys, layer.values
    return cache


def _with_room(memory: Tensor, tokens: int) -> Tensor:
    buffer = memory.new_empty(*memory.shape[:2], tokens, memory.shape[3])
    buffer[:, :, : memory.shape[2]] = memory
    return buffer


def _left(memory: Tensor, gap: int, longest: int) -> Tensor:
    """The last `longest` tokens of `memory` (keys or values) without the slot `gap`, into which the last one moves."""
    last = len(memory) - 1
    if gap != last:
        memory[gap] = memory[last]
    return memory[:last, :, -longest:]


def plain(cache: object) -> bool:
    """Whether `cache` holds keys and values of every token and nothing else."""
    return isinstance(cache, DynamicCache) and all(type(layer) is DynamicLayer for layer in cache.layers)


def layers_of(cache: DynamicCache) -> Layers:
    return [(layer.keys, layer.values) for layer in cache.layers]


def cache_of(layers: Layers) -> DynamicCache:
    cache = DynamicCache()
    for number, (keys, values) in enumerate(layers):
        cache.update(keys, values, number)
    return cache


def merge(cache: DynamicCache, other: DynamicCache) -> None:
    """Add the rows of `other` to `cache`, the shorter ones padded on the left with zeros."""
    for layer, more in zip(cache.layers, other.layers, strict=True):
        layer.keys, layer.values = stacked(layer.keys, more.keys), stacked(layer.values, more.values)


def stacked(first: Tensor, second: Tensor) -> Tensor:
    rows, longest = len(first), max(first.shape[2], second.shape[2])
    both = first.new_zeros(rows + len(second), first.shape[1], longest, first.shape[3])
    both[:rows, :, longest - first.shape[2] :] = first
    both[rows:, :, longest - second.shape[2] :] = second
    return both
