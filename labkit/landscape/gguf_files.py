"""The size of a GGUF file, tensor by tensor: a format such as Q4_K_M is a mix of block types.

Which tensor gets which type is decided in llama.cpp's src/llama-quant.cpp (read at 007dbbf); the rules are followed
here for the formats of quantization.csv, without an importance matrix. Bits of a block are exact: gguf's
GGML_QUANT_SIZES. An image encoder is a file of its own (the projector) in 16 bit.
"""

from labkit.landscape.models import Model

BITS = {"Q2_K": 2.625, "Q3_K": 3.4375, "Q4_K": 4.5, "Q5_K": 5.5, "Q6_K": 6.5625, "IQ4_XS": 4.25}
BITS |= {"Q4_0": 4.5, "Q5_0": 5.5, "Q5_1": 6.0, "Q8_0": 8.5, "IQ4_NL": 4.5, "F16": 16.0, "F32": 32.0}
# A row that is no multiple of the 256 weights of a block gets another type, whose blocks have 32.
FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}
BLOCK = 256
BASE = {"Q4_K_M": "Q4_K", "Q4_K_S": "Q4_K", "Q5_K_M": "Q5_K", "Q3_K_L": "Q3_K"}  # else a format is its own base
EIGHT = 8  # llama.cpp has rules of their own for mixtures of eight experts


def gguf_bytes(model: Model, form: str) -> int | None:
    """Bytes of the weights of `model` in the GGUF format `form`; None where the sizes of its tensors are unknown."""
    head_width = model.n_heads and model.head_dim and model.n_heads * model.head_dim
    if not (model.params_total_b and model.layers and model.hidden_size and model.vocab and model.intermediate_size):
        return None
    h, base = model.hidden_size, BASE.get(form, form)
    table, encoder = model.vocab * h, round((model.encoder_params_b or 0) * 1e9)
    shared = model.tied_embeddings is True
    bits = table * _bits(_head_type(base) if shared else base, h) + 16 * encoder
    bits += 0 if shared else table * _bits(_head_type(base), h)
    counted = table * (1 if shared else 2) + encoder
    for layer in range(model.layers):
        for role, size, width in _layer(model, head_width):
            bits += size * _bits(block_type(form, role, layer, model), width)
            counted += size
    rest = round(model.params_total_b * 1e9) - counted
    return round((bits + max(rest, 0) * _rest_bits(model, base)) / 8)


def _layer(model: Model, head_width: int | None) -> list[tuple[str, int, int]]:
    """(role, weights, length of a row) of the matrices of one layer; the attention's only where it is plain."""
    h, parts = model.hidden_size, []
    if model.attention in ("mha", "gqa", "sliding", "unknown") and head_width and model.n_kv_heads:
        kv = model.n_kv_heads * model.head_dim
        parts = [("q", h * head_width, h), ("k", h * kv, h), ("v", h * kv, h), ("o", h * head_width, head_width)]
    inner, copies = (model.expert_size, model.experts) if model.kind == "moe" else (model.intermediate_size, 1)
    if inner and copies:
        gated = 0 if model.model_type == "gpt_neox" else h * inner * copies
        parts += [("gate", gated, h), ("up", h * inner * copies, h), ("down", h * inner * copies, inner)]
    return parts


def block_type(form: str, role: str, layer: int, model: Model) -> str:
    """The block type of the matrix `role` (q, k, v, o, gate, up, down) in `layer`, counted from 0."""
    base, groups = BASE.get(form, form), model.n_heads // (model.n_kv_heads or model.n_heads)
    first, more = layer < model.layers // 8, _more_bits(layer, model.layers)
    wide = {"Q2_K": "Q4_K" if groups >= 4 else "Q3_K", "Q3_K_L": "Q5_K"}
    wide |= {"IQ4_XS": "Q5_K"} if groups >= 4 else {}
    if role in ("v", "down") and more and form in ("Q4_K_M", "Q5_K_M"):
        base = "Q6_K"
    elif role == "v":
        base = "Q5_K" if form == "Q4_K_S" and layer < 4 else wide.get(form, base)
        if model.layers == 80 and groups > 1 and base in ("Q3_K", "Q4_K"):
            base = "Q5_K"
    elif role == "down":
        base = "Q5_K" if form in ("Q4_K_S", "IQ4_XS") and first else {"Q2_K": "Q3_K", "Q3_K_L": "Q5_K"}.get(form, base)
    elif role == "o" and model.experts != EIGHT:
        base = {"Q2_K": "Q3_K", "Q3_K_L": "Q5_K"}.get(form, base)
    if model.experts == EIGHT and role in ("k", "v"):
        return "Q8_0"
    if model.experts == EIGHT and role == "o" and form in ("Q2_K", "Q4_K_S", "Q4_K_M", "IQ4_XS"):
        return "Q5_K"
    return base


def _more_bits(layer: int, layers: int) -> bool:
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _head_type(base: str) -> str:
    return "Q8_0" if base == "Q8_0" else "Q6_K"


def _bits(kind: str, width: int) -> float:
    return BITS[FALLBACK[kind] if kind in FALLBACK and width % BLOCK else kind]


def _rest_bits(model: Model, base: str) -> float:
    """What is left: norms, biases and routers in 32 bit; of an attention with a layout of its own, its matrices."""
    return BITS["F32"] if model.attention in ("mha", "gqa", "sliding", "unknown") else BITS[base]
