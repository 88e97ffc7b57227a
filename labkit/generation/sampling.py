"""How the next token is chosen from the network's logits."""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

COLDEST = 1e-3  # below this temperature the division overflows long before a second token has a chance


@dataclass(frozen=True)
class Sampling:
    """How to decode. temperature 0 is greedy and ignores `top_p` and `seed`; `stop` texts are cut from the answer.

    The penalties (-2 to 2) are taken from the score of each token that the answer already has: `presence_penalty` once,
    `frequency_penalty` for every time it came, as in OpenAI's API. `top_logprobs` (None: no log-probabilities) is how
    many of the likeliest tokens are told beside the chosen one.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_logprobs: int | None = None


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
