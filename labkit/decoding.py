"""How an answer is decoded: the numbers that a model in this process and every server understand. Loads no torch."""

import math
from dataclasses import dataclass

from labkit.errors import LabError

SEEDS = range(-(2**63), 2**64)  # what torch's generator takes


@dataclass(frozen=True)
class Sampling:
    """How to decode. temperature 0 is greedy and ignores `top_p` and `seed`; `stop` texts are cut from the answer.

    The penalties (-2 to 2) are taken from the score of each token that the answer already has: `presence_penalty` once,
    `frequency_penalty` for every time it came, as in OpenAI's API. `top_logprobs` (None: no log-probabilities) is how
    many of the likeliest tokens are told beside the chosen one. Raises LabError for the first number that cannot be.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_logprobs: int | None = None

    def __post_init__(self):
        if self.max_tokens < 1:
            raise LabError(f"max_tokens must be at least 1, and is {self.max_tokens}", "give a larger one")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            what = f"temperature must be a number from 0 on, and is {self.temperature}"
            raise LabError(what, "give 0 for the likeliest token each time, about 1 for variety")
        if not 0 <= self.top_p <= 1:
            raise LabError(f"top_p is a share from 0 to 1, and is {self.top_p}", "1 leaves no token out")
        if self.seed not in SEEDS:
            raise LabError(f"the seed {self.seed} has more than 64 bits", "give a smaller whole number")
