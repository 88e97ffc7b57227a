"""Batches of chats of different lengths without padding: one row that holds them one after the other.

Each chat has its own positions, and attention is done chat by chat, so that no chat sees another and no work is spent
on padding. Only the hidden states that predict a scored token go through the output layer: with a vocabulary of
128,256 the logits of a prompt are the largest tensor of a step, and nobody reads them.
"""

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from labkit.adaptation.lora.chats import EncodedChat

PACKED = "labkit_packed"  # the name under which transformers finds packed_attention
CLOSE = 0.03  # relative difference of logits up to which a packed chat counts as the chat alone; a leak is ten times it


@dataclass(frozen=True)
class PackedBatch:
    """`ids` and `positions` (1, tokens); `lengths` of the chats; `keep` (scored,): the places before a scored token,
    and `targets` (scored,): those tokens. `weight` is the batch's share of its step's scored tokens."""

    ids: Tensor
    positions: Tensor
    lengths: tuple[int, ...]
    keep: Tensor
    targets: Tensor
    weight: float = 1.0


def pack(chats: Sequence[EncodedChat], device: str, weight: float = 1.0) -> PackedBatch:
    """`chats` as one row. The first token of a chat is never a target: nothing comes before it."""
    ids, scored = np.concatenate([chat.ids for chat in chats]), np.concatenate([chat.scored for chat in chats])
    lengths = tuple(map(len, chats))
    scored[np.cumsum((0, *lengths[:-1]))] = False
    at = np.flatnonzero(scored)
    positions = np.concatenate([np.arange(length) for length in lengths])
    ids, positions, keep, targets = (
        torch.from_numpy(array.astype(np.int64)).to(device, non_blocking=True)
        for array in (ids, positions, at - 1, ids[at])
    )
    return PackedBatch(ids[None], positions[None], lengths, keep, targets, weight)


def scored_tokens(chats: Sequence[EncodedChat]) -> int:
    return sum(int(chat.scored[1:].sum()) for chat in chats)


def chat_loss(model: nn.Module, batch: PackedBatch, packed: bool) -> Tensor:
    """Mean cross-entropy in nats over the scored tokens; `packed` says whether `model` is set up by `packed_model`."""
    logits = _packed_logits(model, batch) if packed else _padded_logits(model, batch)
    return functional.cross_entropy(logits.float(), batch.targets)


def _packed_logits(model: nn.Module, batch: PackedBatch) -> Tensor:
    return model(
        input_ids=batch.ids,
        position_ids=batch.positions,
        logits_to_keep=batch.keep,
        use_cache=False,
        chat_lengths=batch.lengths,
    ).logits[0]


def _padded_logits(model: nn.Module, batch: PackedBatch) -> Tensor:
    """For models that cannot be packed: a row for each chat, filled up on the right."""
    rows = batch.ids[0].split(batch.lengths)
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits[mask.bool()][batch.keep]


def packed_attention(module, query: Tensor, key: Tensor, value: Tensor, _mask, chat_lengths=(), **options):
    """transformers' scaled dot-product attention for each chat of a packed row: (1, heads, tokens, head width)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    options = options | {"attention_mask": None}
    if len(chat_lengths) < 2:
        return sdpa_attention_forward(module, query, key, value, **options)
    if len(set(chat_lengths)) == 1:
        return _equal_chats(module, query, key, value, chat_lengths[0], options)
    pieces = (tensor.split(chat_lengths, 2) for tensor in (query, key, value))
    outputs = [sdpa_attention_forward(module, *chat, **options)[0] for chat in zip(*pieces, strict=True)]
    return torch.cat(outputs, 1), None


def _equal_chats(module, query: Tensor, key: Tensor, value: Tensor, length: int, options: dict):
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    rows = (tensor[0].unflatten(1, (-1, length)).transpose(0, 1) for tensor in (query, key, value))
    return sdpa_attention_forward(module, *rows, **options)[0].flatten(0, 1)[None], None


@contextlib.contextmanager
def packed_model(model: nn.Module) -> Iterator[bool]:
    """Set `model` (transformers', not peft's) up for packed rows while the block runs; False where it cannot be.

    Whether it can is tried, not assumed: two short chats in one row must have the logits that they have alone. A
    recurrent model, one that ignores positions, or attention with a window of its own keeps padded batches.
    """
    known = getattr(model, "_supports_sdpa", False) and not getattr(model, "_is_stateful", False)
    takes = inspect.signature(model.forward).parameters
    before = getattr(model.config, "_attn_implementation", None)
    if not known or before != "sdpa" or not {"position_ids", "logits_to_keep"} <= set(takes) or _windowed(model):
        yield False
        return
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, lambda *_, **__: None)
    model.set_attn_implementation(PACKED)
    planned = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for each length, which costs more than the attention
    try:
        works = _separates(model)
        if not works:
            model.set_attn_implementation(before)
        yield works
    finally:
        model.set_attn_implementation(before)
        torch.backends.cuda.enable_cudnn_sdp(planned)


def _windowed(model: nn.Module) -> bool:
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    return bool(kinds - {"full_attention"}) or bool(getattr(config, "sliding_window", None) and not kinds)


@torch.no_grad()
def _separates(model: nn.Module) -> bool:
    was = model.training
    model.eval()
    device, size = str(model.device), min(64, model.config.get_text_config().vocab_size)
    first = EncodedChat(np.arange(12) % size, np.ones(12, dtype=bool))
    second = EncodedChat(np.arange(9)[::-1] * 5 % size, np.ones(9, dtype=bool))
    try:
        together = _packed_logits(model, pack([first, second], device))[-8:].float()
        alone = model(input_ids=pack([second], device).ids, use_cache=False).logits[0, :-1].float()
    except (TypeError, ValueError, RuntimeError):
        return False
    finally:
        model.train(was)
    return bool((together - alone).norm() <= CLOSE * alone.norm())
