"""The numbers of a fine-tuning, named presets, and what is refused before a model is loaded. Loads without torch."""

import math
from dataclasses import dataclass, replace

from labkit.errors import LabError

QUANTS = ("none", "nf4", "int8")
TRAINERS = ("labkit", "trl")
SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Architectures, as config.json names them, whose linear layers are those seven; the others get peft's "all-linear".
WITH_SEVEN = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3")


@dataclass(frozen=True)
class LoraSettings:
    """What a fine-tuning is made of. `r`, `alpha`, `dropout` and `targets` are those of LoRA (Hu et al. 2021, arXiv
    2106.09685): each target W gets a trained B A of rank r, scaled by alpha / r.

    `targets` are the last parts of layers' names; empty means the architecture's linear projections. `quant` is none,
    nf4 (QLoRA, Dettmers et al. 2023, arXiv 2305.14314, with double quantization) or int8. With `full` every weight is
    trained and there is no adapter. A step sees `accumulate` batches of `batch_size` chats, and its loss is the mean
    over all of their scored tokens. `steps` above 0 replaces `epochs`. The rate rises over `warmup_share` of the steps
    and falls along a cosine to a tenth. `held_out_share` of the chats is kept from training for the held-out loss;
    with `patience` above 0 the run stops when that many log rows in a row brought no lower one, and the weights of the
    lowest are kept. `replay_share` of each epoch's chats come from the replay file. `max_length` 0 is the model's own
    context. `checkpointing` computes activations twice to hold fewer of them.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    quant: str = "none"
    full: bool = False
    epochs: float = 3.0
    steps: int = 0
    batch_size: int = 4
    accumulate: int = 1
    learning_rate: float = 2e-4
    warmup_share: float = 0.03
    weight_decay: float = 0.0
    seed: int = 13
    held_out_share: float = 0.1
    patience: int = 0
    replay_share: float = 0.3
    log_every: int = 10
    max_length: int = 0
    precision: str = "auto"
    checkpointing: bool = False


# "seed" is a common QLoRA recipe for models of some billions of parameters. "mini" is the best of a dozen tried on the
# embedded model (benchmarks/README.md has its spread over three seeds).
PRESETS: dict[str, LoraSettings] = {
    "seed": LoraSettings(quant="nf4", dropout=0.05, targets=SEVEN, accumulate=4),
    "mini": LoraSettings(epochs=7, learning_rate=1.5e-3, batch_size=8, held_out_share=0.05),
}


def preset(name: str, **given: object) -> LoraSettings:
    """The preset `name` with what was `given` (None: not given) in place of its own. Raises LabError."""
    if name not in PRESETS:
        raise LabError(f"there is no preset called {name!r}", f"choose {' or '.join(PRESETS)}")
    settings = replace(PRESETS[name], **{key: value for key, value in given.items() if value is not None})
    check_settings(settings)
    return settings


def check_settings(settings: LoraSettings) -> None:
    """Raises LabError for the first number that cannot be, naming the option."""
    at_least_one = ("r", "alpha", "batch_size", "accumulate", "log_every")
    for name in at_least_one:
        if getattr(settings, name) < 1:
            raise LabError(f"{_option(name)} must be at least 1, and is {getattr(settings, name)}", "give a larger one")
    for name in ("steps", "patience", "max_length", "weight_decay"):
        if not 0 <= getattr(settings, name) < math.inf:
            raise LabError(f"{_option(name)} must be 0 or more, and is {getattr(settings, name)}", "give 0 or more")
    for name in ("dropout", "warmup_share", "held_out_share", "replay_share"):
        if not 0 <= getattr(settings, name) < 1:
            what = f"{_option(name)} is a share from 0 to below 1, and is {getattr(settings, name)}"
            raise LabError(what, "0.1 means a tenth")
    for name in ("epochs", "learning_rate"):
        if not 0 < getattr(settings, name) < math.inf:
            raise LabError(
                f"{_option(name)} must be a number above 0, and is {getattr(settings, name)}", "give another"
            )
    if not 0 <= settings.seed < 2**63:
        raise LabError(f"--seed must be from 0 to 2**63 - 1, and is {settings.seed}", "give another whole number")
    if not all(settings.targets):
        raise LabError("one of the --targets has no name", "join the names of layers by single commas")
    if settings.quant not in QUANTS:
        raise LabError(f"there is no quantization called {settings.quant!r}", f"choose one of {', '.join(QUANTS)}")
    if settings.full and settings.quant != "none":
        what = f"full fine-tuning trains the weights themselves, and {settings.quant} weights cannot be trained"
        raise LabError(what, "leave --quant out, or leave --full out")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
