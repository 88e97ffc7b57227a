"""AdamW and its schedule: which parameters decay, and how fast each step may go."""

import inspect
import math

import torch
from torch import nn

from labkit.training.settings import TrainSettings


class EagerAdamW(torch.optim.AdamW):
    """torch's AdamW as it is without its compiler.

    torch wraps these methods so that its compiler leaves them alone, and loads it to say so: two seconds and 60 MiB
    before the first step, in a run that most often compiles nothing. Only a model is compiled here, never an optimizer.
    """

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def make_optimizer(model: nn.Module, settings: TrainSettings) -> EagerAdamW:
    """AdamW that decays matrices and leaves biases and norms alone, so that decay never shrinks a scale."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return EagerAdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)


def learning_rate(step: int, settings: TrainSettings) -> float:
    """The rate at `step` (1-based): linear warm-up, then a cosine from the full rate to a tenth of it."""
    if step <= settings.warmup_steps:
        return settings.learning_rate * step / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))
