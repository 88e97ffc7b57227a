"""One dial for a run: a size sets depth, width, context, batch, learning rate and steps together.

The rules, so that a size of your own can follow them:

- width grows with depth: n_embd = 32 x n_layer, heads of 32 (GPT-2's published sizes have heads of 64);
- context is half the width, so that attention stays a small part of the work;
- the learning rate falls as 1 / width from 4e-3 at 128, the rule of muP for Adam (Yang et al. 2022, arXiv 2203.03466,
  table 3); gpt2-124m takes 6e-4, the published rate of GPT-3's model of that size (Brown et al. 2020, table 2.1);
- steps grow with the parameters, far below the 20 tokens per parameter of Hoffmann et al. 2022 (arXiv 2203.15556),
  which none of these runs can pay for: they show a loop, not a model to keep.
"""

from dataclasses import dataclass

from labkit.errors import LabError


@dataclass(frozen=True)
class Size:
    """Fields as in GPT2Config and TrainSettings; `accumulate` batches make one step."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    batch_size: int
    accumulate: int
    learning_rate: float
    steps: int


SIZES = {
    "tiny": Size(2, 2, 64, 32, 512, 16, 1, 8e-3, 200),
    "mini": Size(4, 4, 128, 64, 1024, 12, 1, 4e-3, 300),
    "small": Size(8, 8, 256, 128, 2048, 12, 1, 2e-3, 600),
    "gpt2-124m": Size(12, 12, 768, 1024, 50257, 12, 4, 6e-4, 2000),
}


def size_of(name: str) -> Size:
    """Raises LabError for a name that is no size."""
    if name not in SIZES:
        raise LabError(f"there is no size called {name!r}", f"choose one of {', '.join(SIZES)}")
    return SIZES[name]
