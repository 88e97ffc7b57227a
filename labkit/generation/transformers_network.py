"""The reference backend: any causal model that transformers loads, on the device that was chosen."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from labkit.environment import Device
from labkit.generation.batch import Batch
from labkit.generation.prefixes import Prefixes

if TYPE_CHECKING:
    from labkit.generation.vision import Vision

SEEING = ("qwen2_vl",)  # model types, as a checkpoint's config.json names them


class TransformersNetwork:
    """A Network around a transformers model; weights, number format and device are the model's own.

    `vision` is None for a model that reads text alone.
    """

    backend = "transformers"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        device_reason: str,
        vision: "Vision | None" = None,
    ):
        self.model, self.vision = model, vision
        self.device, self.device_reason = model.device.type, device_reason
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.context_length = int(getattr(model.config.get_text_config(), "max_position_embeddings", 2048))
        self.vocabulary = int(model.config.get_text_config().vocab_size)
        self.parameter_count = sum(parameter.numel() for parameter in model.parameters())
        end = model.generation_config.eos_token_id
        end = tokenizer.eos_token_id if end is None else end
        self.end_ids = frozenset([end] if isinstance(end, int) else end or ())
        self._prefixes = Prefixes()

    def rows(self) -> Batch:
        return Batch(self.model, self._prefixes)


def load_transformers(
    source: Path | str, tokenizer: PreTrainedTokenizerBase, dtype: str, device: Device, pin: Mapping[str, str]
) -> TransformersNetwork:
    """Load a folder's or a hub's checkpoint, of which `pin` may name the revision; raises what transformers raises."""
    transformers_logging.disable_progress_bar()  # a bar for loading 9 MB is only noise in a log
    dtype = "float32" if dtype == "auto" and device.name == "cpu" else dtype
    vision = _vision(source, tokenizer, pin)
    kind = AutoModelForImageTextToText if vision else AutoModelForCausalLM
    weights = kind.from_pretrained(source, dtype=dtype, trust_remote_code=False, **pin)
    return TransformersNetwork(weights.to(device.name).eval(), tokenizer, device.reason, vision)


def _vision(source: Path | str, tokenizer: PreTrainedTokenizerBase, pin: Mapping[str, str]) -> "Vision | None":
    """The processor of a checkpoint that reads images; its code is loaded for such a checkpoint alone."""
    if AutoConfig.from_pretrained(source, trust_remote_code=False, **pin).model_type not in SEEING:
        return None
    from labkit.generation.vision import load_vision

    return load_vision(source, tokenizer, pin)
