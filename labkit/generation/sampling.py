"""How the next token is chosen from the network's logits."""

from collections import Counter

import torch
from torch import Tensor

from labkit.decoding import Sampling

COLDEST = 1e-3  # below this temperature the division overflows long before a second token has a chance


def penalised(logits: Tensor, sampling: Sampling, made: Counter) -> Tensor:
    """`logits`, shape (vocab,), less the penalties for the tokens counted in `made`."""
    if not made or not (sampling.presence_penalty or sampling.frequency_penalty):
        return logits
    ids, counts = torch.tensor(list(made)), torch.tensor(list(made.values()), dtype=logits.dtype)
    logits = logits.clone()
    logits[ids] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    return logits


def choose_token(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One token id from `logits`, shape (vocab,): greedy below COLDEST, else nucleus sampling.

    Nucleus: the smallest set of tokens whose probability reaches `top_p` (Holtzman et al. 2020, arXiv 1904.09751).
    """
    if sampling.temperature < COLDEST:
        return int(logits.numpy().argmax())  # in half the time of torch's
    probabilities = torch.softmax(logits / sampling.temperature, dim=-1)
    ordered, index = probabilities.sort(descending=True)
    outside = ordered.cumsum(0) - ordered >= sampling.top_p
    outside[0] = False  # the likeliest token stays even at top_p 0
    pick = torch.multinomial(ordered.masked_fill(outside, 0.0), 1, generator=generator)
    return int(index[pick])
