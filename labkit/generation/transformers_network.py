"""The reference backend: any causal model that transformers loads, on the device that was chosen."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from labkit.environment import Device, sixteen_bits
from labkit.generation.backends import BITSANDBYTES, require_transformers_dtype
from labkit.generation.batch import Batch
from labkit.generation.bits import (
    keep_odd_sizes_unpacked,
    number_format,
    quantization_config,
    require_bitsandbytes,
)
from labkit.generation.prefixes import Prefixes

if TYPE_CHECKING:
    from labkit.generation.adapters import Adapters
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
        self.dtype = number_format(model)
        self.context_length = int(getattr(model.config.get_text_config(), "max_position_embeddings", 2048))
        self.vocabulary = int(model.config.get_text_config().vocab_size)
        self.parameter_count = model.num_parameters()  # of the base; of 4-bit weights, which are packed, each one
        end = model.generation_config.eos_token_id
        end = tokenizer.eos_token_id if end is None else end
        self.end_ids = frozenset([end] if isinstance(end, int) else end or ())
        self._prefixes = Prefixes()
        self._adapters: Adapters | None = None

    def adapt(self, folders: Mapping[str, Path], base_revision: str) -> None:
        """Lay adapters (name to folder) beside the weights. Raises LabError (see `Adapters`)."""
        from labkit.generation.adapters import Adapters

        self._adapters = Adapters(self.model, folders, base_revision)

    def rows(self) -> Batch:
        return Batch(self.model, self._prefixes, self._adapters)


def load_transformers(
    source: Path | str, tokenizer: PreTrainedTokenizerBase, dtype: str, device: Device, pin: Mapping[str, str]
) -> TransformersNetwork:
    """Load a folder's or a hub's checkpoint, of which `pin` may name the revision; raises what transformers raises.

    `dtype` is a torch type, or a format of bitsandbytes, whose other weights are float32 on a CPU, where bitsandbytes
    is slower beside 16-bit ones, and of the checkpoint's own type elsewhere. Raises LabError for any other, and where
    bitsandbytes is absent or does not run on the device.
    """
    require_transformers_dtype(dtype)
    transformers_logging.disable_progress_bar()  # a bar for loading 9 MB is only noise in a log
    bits = dtype if dtype in BITSANDBYTES else ""
    dtype = "auto" if bits else dtype
    how = {"dtype": _torch_type(source, dtype, device, pin), "trust_remote_code": False, **pin}
    vision = _vision(source, tokenizer, pin)
    kind = AutoModelForImageTextToText if vision else AutoModelForCausalLM
    if not bits:
        weights = kind.from_pretrained(source, **how).to(device.name)
        if device.name == "cpu":
            lay_out_by_column(weights)
    else:
        require_bitsandbytes(bits, device.name)
        compute = torch.float32 if device.name == "cpu" else _sixteen_bits(device)
        quantized = quantization_config(bits, compute)
        weights = kind.from_pretrained(source, **how, quantization_config=quantized, device_map={"": device.name})
        keep_odd_sizes_unpacked(weights)
    return TransformersNetwork(weights.eval(), tokenizer, device.reason, vision)


def lay_out_by_column(model: PreTrainedModel) -> None:
    """Keep the weights of linear layers column by column in memory, in place; shapes and values stay.

    A step multiplies few rows, and a CPU's matrix product then copies a weight that lies row by row before it uses it:
    some 10 % of a step of the embedded model (benchmarks/README.md).
    """
    for module in model.modules():
        if type(module) is torch.nn.Linear:
            module.weight.data = module.weight.data.t().contiguous().t()


def _torch_type(source: Path | str, dtype: str, device: Device, pin: Mapping[str, str]) -> str:
    """What "auto" means here: float32 on a CPU; float16 for a bfloat16 checkpoint on a GPU that only imitates bfloat16,
    such as the T4; else the checkpoint's own type."""
    if dtype != "auto" or device.name != "cuda":
        return "float32" if dtype == "auto" and device.name == "cpu" else dtype
    own = AutoConfig.from_pretrained(source, trust_remote_code=False, **pin).dtype
    return "float16" if own == torch.bfloat16 and _sixteen_bits(device) == torch.float16 else dtype


def _sixteen_bits(device: Device) -> torch.dtype:
    """The 16-bit numbers that the GPU multiplies in hardware; bfloat16 where it is not an NVIDIA one."""
    return torch.float16 if device.name == "cuda" and sixteen_bits()[0] == "fp16" else torch.bfloat16


def _vision(source: Path | str, tokenizer: PreTrainedTokenizerBase, pin: Mapping[str, str]) -> "Vision | None":
    """The processor of a checkpoint that reads images; its code is loaded for such a checkpoint alone."""
    if AutoConfig.from_pretrained(source, trust_remote_code=False, **pin).model_type not in SEEING:
        return None
    from labkit.generation.vision import load_vision

    return load_vision(source, tokenizer, pin)
