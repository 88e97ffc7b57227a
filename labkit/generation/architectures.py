"""A model of the landscape as transformers builds it: its config from the row, its parameters on torch's meta device.

Nothing is downloaded and no weight is filled in: on the meta device a tensor has a shape and no memory, so a model of
hundreds of gigabytes is built in a tenth of a second. What is counted here is the test of the table's figures.
"""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from labkit.errors import LabError
from labkit.landscape.models import Model

# Column of the table: the names that transformers' configs have for it.
KEYS = {
    "layers": ("num_hidden_layers",),
    "hidden_size": ("hidden_size",),
    "n_heads": ("num_attention_heads",),
    "n_kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "intermediate_size": ("intermediate_size",),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "experts_per_token": ("num_experts_per_tok",),
    "expert_size": ("moe_intermediate_size",),
    "vocab": ("vocab_size",),
    "tied_embeddings": ("tie_word_embeddings",),
}
VALUES = {"none": None, "yes": True, "no": False}


def config_of(model: Model):
    """The transformers config of `model`, from its row: model_type, the sizes, and the pairs of the column `config`.

    Raises LabError for a row whose dimensions are not all known.
    """
    if not model.dimensions_known:
        raise LabError(f"not all dimensions of {model.repo_id} are known", "choose a row whose dimensions are complete")
    given = AutoConfig.for_model(model.model_type)
    text = getattr(given, "text_config", None)
    names = set((text or given).to_dict())
    sizes = {key: getattr(model, name) for name, keys in KEYS.items() for key in keys if key in names}
    values: dict = {key: value for key, value in sizes.items() if value is not None}
    if text is not None:
        values = {"text_config": values, "tie_word_embeddings": model.tied_embeddings}
    for pair in model.config:
        path, _, value = pair.partition("=")
        *outer, key = path.split(".")
        place = values.setdefault(outer[0], {}) if outer else values
        place[key] = VALUES[value] if value in VALUES else float(value) if "." in value else int(value)
    return AutoConfig.for_model(model.model_type, **values)


def build(config, device: str = "meta") -> PreTrainedModel:
    """The network of `config`, with an image encoder where its type has one; random weights unless on "meta"."""
    name = config.model_type
    images = name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    if not images and name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise LabError(f"transformers builds no text model of the type {name!r}", "choose another row")
    with torch.device(device):
        return (AutoModelForImageTextToText if images else AutoModelForCausalLM).from_config(config)


def parameter_counts(model: Model) -> dict[str, int]:
    """Parameters of `model` as transformers counts them: total, encoder (images, sound), experts (of a mixture).

    A multi-token-prediction layer, which transformers leaves out, counts as one more layer of the last kind and the
    projection of two hidden vectors to one (DeepSeek-V3, arXiv 2412.19437, section 2.2).
    """
    network = build(config_of(model))
    counts = {"total": 0, "encoder": 0, "experts": 0}
    last = f"layers.{model.layers - 1}."
    extra = model.mtp_layers or 0
    for name, parameter in network.named_parameters():
        repeats = 1 + (extra if last in name and not _encoder(name) else 0)
        counts["total"] += parameter.numel() * repeats
        counts["encoder"] += parameter.numel() if _encoder(name) else 0
        counts["experts"] += parameter.numel() * repeats if ".experts." in name else 0
    counts["total"] += extra * 2 * model.hidden_size**2
    return counts


def _encoder(name: str) -> bool:
    return any(part in name for part in ("vision", "visual", "multi_modal_projector", "audio"))
