"""The model that is tuned: found, loaded in the number format of the run, quantized, and given its adapter."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from labkit.adaptation.lora.settings import SEVEN, WITH_SEVEN, LoraSettings
from labkit.errors import LabError
from labkit.export.checkpoint import weights_revision
from labkit.generation.bits import keep_all_unpacked, load_what_peft_loads, quantization_config, require_bitsandbytes
from labkit.layout import display_path
from labkit.training.precision import DTYPES, Precision, choose_precision

BITS = {"nf4": "nf4-dq", "int8": "int8"}  # QLoRA quantizes the scales too
CPU_QUANT = (
    "On a CPU a quantized model saves memory and no time: each weight is turned back into a number at every use, so "
    "that a step takes longer than with --quant none."
)


@dataclass(frozen=True)
class Base:
    """`source` is a folder or a hub id, `name` the folder's name or the hub id, as in every artifact, `revision` the
    hub's commit or the first digits of the weights' sha256."""

    source: Path | str
    name: str
    revision: str

    @property
    def place(self) -> str:
        """Where it is, as an artifact may say it: a folder from the workbook's on, outside of it by its name alone."""
        return display_path(self.source) if isinstance(self.source, Path) else self.source


@dataclass(frozen=True)
class ParameterCount:
    """`trainable` are the adapter's, `base` the model's own; `together` is what a model with its adapter holds."""

    trainable: int
    base: int

    @property
    def together(self) -> int:
        return self.trainable + self.base


def find_base(model: str) -> Base:
    """The base that `model` (mini-instruct, a folder or a hub id) means. Raises LabError for a path that is none."""
    from labkit.generation.chat_model import hub_commit, local_source, told_as_lab_error

    source = local_source(model)
    if source is None:
        with told_as_lab_error(model):
            AutoConfig.from_pretrained(model, trust_remote_code=False)
        return Base(model, model, hub_commit(model, ""))
    if source.is_file():
        raise LabError(f"{source.name} is a GGUF file, and training needs a checkpoint", "give its folder or hub id")
    return Base(source, source.resolve().name, weights_revision(source))


def tuning_precision(wanted: str, device: str) -> Precision:
    """As `choose_precision`, but fp32 for "auto" on a CPU.

    A CPU's library (oneDNN) compiles a kernel for each new shape of a bf16 product, and every batch of chats has
    another number of tokens. On the embedded model fp32 was a fifth faster, in 500 MiB less.
    """
    if wanted == "auto" and device == "cpu":
        return Precision("fp32", "on a CPU each length of a batch would need bf16 kernels of its own")
    return choose_precision(wanted, device)


def load_weights(source: Path | str, settings: LoraSettings, device: str, precision: Precision) -> PreTrainedModel:
    """The base for training, frozen unless `settings.full`.

    A frozen base is held in the format that the run computes in, so that no step casts it again. What full fine-tuning
    changes is held in fp32, because small updates vanish in 16 bits. Raises LabError where bitsandbytes is needed and
    absent, or does not run on the device.
    """
    options: dict = {"dtype": torch.float32 if settings.full else DTYPES[precision.name]}
    if settings.quant != "none":
        require_bitsandbytes(BITS[settings.quant], device)
        quantized = quantization_config(BITS[settings.quant], options["dtype"])
        options |= {"quantization_config": quantized, "device_map": {"": device}}
    model = AutoModelForCausalLM.from_pretrained(source, trust_remote_code=False, **options)
    keep_all_unpacked(model)
    model.requires_grad_(settings.full)
    if settings.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model if settings.quant != "none" else model.to(device)


def with_adapter(model: PreTrainedModel, settings: LoraSettings) -> nn.Module:
    """`model` with untrained adapters (B = 0, so that it answers as before), weights in fp32.

    Raises LabError for targets that the model does not have.
    """
    torch.manual_seed(settings.seed)
    adapted = _adapted(model, settings)
    for module in adapted.modules():
        if hasattr(module, "cast_input_dtype_enabled"):  # autocast casts where it must, once
            module.cast_input_dtype_enabled = False
    return adapted


def _adapted(model: PreTrainedModel, settings: LoraSettings) -> nn.Module:
    load_what_peft_loads()
    from peft import get_peft_model

    from labkit.generation.adapters import peft_at_work

    with peft_at_work():
        return get_peft_model(model, adapter_config(model.config, settings))


def adapter_config(config: PreTrainedConfig, settings: LoraSettings):
    """peft's LoraConfig for the architecture of `config`."""
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=target_modules(config, settings.targets),
    )


def target_modules(config: PreTrainedConfig, given: Sequence[str] = ()) -> list[str] | str:
    """The targets that were given, else the seven projections of a known architecture, else peft's "all-linear"."""
    if given:
        return "all-linear" if tuple(given) == ("all-linear",) else list(given)
    return list(SEVEN) if config.model_type in WITH_SEVEN else "all-linear"


def check_targets(model: nn.Module, targets: Sequence[str]) -> None:
    """Raises LabError that names the targets which no layer of `model` has, and those that there are."""
    linear = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    linear -= {"lm_head"}
    every = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    missing = [name for name in targets if name not in every and name != "all-linear"]
    if missing:
        what = f"the model has no layer called {', '.join(missing)}"
        raise LabError(what, f"its linear layers are {', '.join(sorted(linear)) or 'none'}; or give all-linear")


def lora_parameters(config: PreTrainedConfig, r: int, targets: Sequence[str] = ()) -> ParameterCount:
    """What LoRA of rank `r` trains on a model of this shape, counted on torch's meta device: no weight is made.

    A target of shape (out, in) gets r (in + out) numbers.
    """
    settings = LoraSettings(r=r, targets=tuple(targets))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        base = sum(parameter.numel() for parameter in model.parameters())
        check_targets(model, settings.targets)
        adapted = _adapted(model, settings)
    return ParameterCount(trainable_parameters(adapted), base)


def trainable_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
