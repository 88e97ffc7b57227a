"""Weights in 8 and 4 bits by bitsandbytes, through transformers: int8, nf4 and nf4-dq.

int8 is LLM.int8 (Dettmers et al. 2022, arXiv 2208.07339); nf4 is the 4-bit normal float of QLoRA (Dettmers et al.
2023, arXiv 2305.14314), and nf4-dq quantizes its scales too. Embedding, head and norms stay as they are.
"""

import contextlib
import importlib
import logging
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from labkit.errors import LabError

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel

DEVICES = ("cpu", "cuda")


def quantization_config(format: str, compute: torch.dtype) -> "BitsAndBytesConfig":
    """How transformers loads a checkpoint in `format`; matrices are unpacked to `compute` for each pass."""
    from transformers import BitsAndBytesConfig

    if format == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    double = format == "nf4-dq"
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double, bnb_4bit_compute_dtype=compute
    )


def require_bitsandbytes(format: str, device: str) -> None:
    """Raises LabError where bitsandbytes is absent, or does not run on `device`."""
    if device not in DEVICES:
        what = f"the format {format} runs on {' and '.join(DEVICES)}, and the device is {device}"
        raise LabError(what, "use --device cpu, or another --dtype")
    try:
        import_bitsandbytes()
    except ImportError as error:
        what = f"the format {format} needs bitsandbytes, which cannot be loaded here: {error}"
        raise LabError(what, "install it: pip install bitsandbytes") from error


def import_bitsandbytes() -> None:
    """Load bitsandbytes, silently. Raises ImportError.

    Where the package kernels is installed, bitsandbytes would fetch compiled code from the hub as it is loaded, and run
    it; no code from a hub is run here, so that package is hidden from it meanwhile.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # else a line for each matrix of each pass
    with hidden("kernels"):
        importlib.import_module("bitsandbytes")


def load_what_peft_loads() -> None:
    """Call before peft is imported: it loads bitsandbytes where it is installed, and would not do it silently."""
    with contextlib.suppress(ImportError):
        import_bitsandbytes()


@contextlib.contextmanager
def hidden(name: str) -> Iterator[None]:
    """Meanwhile no package called `name` can be found or imported."""
    held = {name: sys.modules[name]} if name in sys.modules else {}
    sys.modules[name] = None
    try:
        yield
    finally:
        del sys.modules[name]
        sys.modules.update(held)


def keep_odd_sizes_unpacked(model: nn.Module) -> None:
    """Processors with AVX512-BF16 run 4-bit matrices in another order of the weights, which bitsandbytes makes at the
    first pass, and fails to make unless 32 divides the rows and a block of scales the columns. Others stay as they are.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            rows, columns = module.weight.quant_state.shape
            if rows % 32 or columns % module.weight.quant_state.blocksize:
                module.support_avx512bf16_for_cpu = False


def keep_all_unpacked(model: nn.Module) -> None:
    """For training. Processors with AVX512-BF16 pack a 4-bit matrix at its first pass without gradients, and no
    gradient flows back through what is packed: torch warns, and adapters learn from the residual stream alone.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False


def number_format(model: "PreTrainedModel") -> str:
    """The format that the matrices of a loaded model really have: of bitsandbytes, or a torch type's name."""
    for module in model.modules():
        if type(module).__name__ == "Linear8bitLt":
            return "int8"
        if type(module).__name__ == "Linear4bit":
            kind = module.weight.quant_type
            return f"{kind}-dq" if module.weight.compress_statistics else kind
    return str(model.dtype).removeprefix("torch.")


def memory_of_weights(model: nn.Module) -> int:
    """Bytes of all weights, with the scales that belong to quantized ones.

    Asked before the first pass, for bitsandbytes may then take nf4-dq's second quantization back (on a processor with
    AVX512-BF16).
    """
    return sum(tensor.nbytes for weight in model.parameters() for tensor in [weight.data, *_scales(weight)])


def _scales(weight: nn.Parameter) -> list[Tensor]:
    state = getattr(weight, "quant_state", None)
    if state is not None:
        nested = [state.offset, state.state2.absmax, state.state2.code] if state.nested else []
        return [state.absmax, state.code, *nested]
    row_scales = getattr(weight, "SCB", None)
    return [] if row_scales is None else [row_scales]
