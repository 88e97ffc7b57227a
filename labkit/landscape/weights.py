"""Bytes of the weights of a model in a format."""

from labkit.landscape.gguf_files import gguf_bytes
from labkit.landscape.models import Model
from labkit.landscape.quantization import Quantization


def weight_bytes(model: Model, form: Quantization) -> tuple[int | None, str]:
    """Bytes of the weights, and why they need checking ("" when they do not).

    (quantized weights * bits + the others * 16) / 8, a GGUF file tensor by tensor. Bits are those of quantization.csv,
    from the structure of a block. Of a mixture every expert is resident, so the total counts, never the active part.
    """
    if model.params_total_b is None:
        return None, "weights: verify, the number of parameters is unknown"
    total = round(model.params_total_b * 1e9)
    if form.scope == "gguf":
        size = gguf_bytes(model, form.format)
        if size is not None:
            return size, ""
        return _mixed(
            total, 0, form
        ), f"weights: verify, {form.format} is a mix and the sizes of its tensors are unknown"
    kept = _kept(model, form)
    if kept is None:
        return None, f"weights: verify, which share {form.format} leaves in 16 bit is unknown for this layout"
    size = _mixed(total, kept, form) + (2 * _table(model) if _stores_head_again(model, form) else 0)
    if form.scope == "groups" and model.attention == "hybrid":
        return (
            size,
            f"weights: verify, makers differ in what {form.format} leaves in 16 bit; here the MLP alone is quantized",
        )
    return size, ""


def _mixed(total: int, kept: int, form: Quantization) -> int:
    return round(((total - kept) * form.bits_per_weight + kept * 16) / 8)


def _kept(model: Model, form: Quantization) -> int | None:
    """Parameters that stay in 16 bit."""
    if form.scope == "all":
        return 0
    if form.scope == "experts":
        experts = expert_parameters(model)
        return None if experts is None else round(model.params_total_b * 1e9) - experts
    if form.scope == "groups" and model.attention == "hybrid":
        mlp = expert_parameters(model) if model.kind == "moe" else _mlp(model)
        return None if mlp is None else round(model.params_total_b * 1e9) - mlp
    return _outside_linears(model)


def _table(model: Model) -> int:
    return model.vocab * model.hidden_size


def _stores_head_again(model: Model, form: Quantization) -> bool:
    return form.copies_tied_head and model.tied_embeddings is True


def _outside_linears(model: Model) -> int | None:
    """Parameters of embedding, head (unless tied; assumed untied where unknown, the larger case), norms, encoder."""
    if not (model.vocab and model.hidden_size and model.layers):
        return None
    tables = 1 if model.tied_embeddings else 2
    encoder = round((model.encoder_params_b or 0) * 1e9)
    return tables * _table(model) + (2 * model.layers + 1) * model.hidden_size + encoder


def _mlp(model: Model) -> int | None:
    """Three matrices of the gated MLP in each layer."""
    if not (model.layers and model.hidden_size and model.intermediate_size):
        return None
    return 3 * model.layers * model.hidden_size * model.intermediate_size


def expert_parameters(model: Model) -> int | None:
    """Parameters of the experts of a mixture whose every layer has them: layers * experts * 3 * hidden * inner."""
    if model.kind != "moe" or not (model.layers and model.experts and model.hidden_size and model.expert_size):
        return None
    return min(
        3 * model.layers * model.experts * model.hidden_size * model.expert_size, round(model.params_total_b * 1e9)
    )
