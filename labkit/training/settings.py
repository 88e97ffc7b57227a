"""The numbers of a run of the loop."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainSettings:
    """What a run is made of. The rate rises linearly over `warmup_steps`, then falls along a cosine to a tenth.

    `betas`, `weight_decay` and `grad_clip` are those of GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix B).
    A step sees `accumulate` batches one after the other, so that a large batch fits into a small memory.
    """

    steps: int
    batch_size: int = 12
    block_size: int = 64
    learning_rate: float = 2e-3
    warmup_steps: int = 20
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float = 1.0
    log_every: int = 25
    eval_batches: int = 8
    seed: int = 13
    accumulate: int = 1
    precision: str = "auto"
