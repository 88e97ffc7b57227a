"""What autograd keeps between forward and backward of one step of a Llama-architecture model, in bytes.

Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models" (arXiv 2205.05198), count a
GPT-3 block operation by operation. The same count is made here for the block that Llama, Mistral and Qwen share:
RMSNorm, rotary positions, grouped queries, fused attention (no tokens x tokens matrix is kept, only a 32-bit
log-sum-exp for each head and token), and SwiGLU. `tests/test_training_memory.py` counts what torch really saves.

Bytes per token of one layer (h hidden, q = heads * head_dim, k = kv heads * head_dim, i intermediate, c bytes per
number of the computation):

- each RMSNorm: its input in fp32 and one reciprocal root, 4h + 4. Where its weight is trained, also the normalised
  vector.
- attention: rotated queries and keys, values, output: c(2q + 2k), and 4 per head.
- SwiGLU: the gate, silu(gate) and up: 3ci.
- a linear layer keeps its input only where its weight is trained. A frozen one keeps nothing, but the A of its
  adapter does: its own copy of the input where dropout or a change of type makes one, else the copy that q, k, v (and
  gate, up) share; and B keeps A(x), r numbers. Dropout keeps its mask, one byte per number on CUDA.
- in the first layer nothing that leads only to the frozen embedding is kept: its norm, and the masks of q, k and v.
"""

from dataclasses import dataclass

from labkit.landscape.models import Model

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SHARED_INPUTS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


@dataclass(frozen=True)
class Step:
    """One training step as autograd sees it. Widths are bytes per number.

    compute: of the blocks; residual: of the stream between them; adapter: in which an adapter multiplies.
    casts: an adapter gets a copy of its input in another type; own_inputs: each trained linear gets its own (autocast).
    """

    batch: int
    context: int
    full: bool
    compute: int
    residual: int
    adapter: int = 0
    casts: bool = False
    own_inputs: bool = False
    rank: int = 0
    targets: tuple[str, ...] = ()
    dropout: float = 0.0
    mask_bytes: int = 1

    @property
    def tokens(self) -> int:
        return self.batch * self.context


def linear_sizes(model: Model) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of the seven projections of one layer."""
    h, inner = model.hidden_size, model.intermediate_size
    q, k = model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim
    sizes = ((h, q), (h, k), (h, k), (q, h), (h, inner), (h, inner), (inner, h))
    return dict(zip(LORA_TARGETS, sizes, strict=True))


def layer_bytes(model: Model, step: Step) -> int:
    """Bytes that one layer keeps, all tokens; the first layer of a frozen model keeps `first_layer_saves` less."""
    h, inner = model.hidden_size, model.intermediate_size
    q, k = model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim
    norms = 2 * (4 * h + 4)
    attention = step.compute * (2 * q + 2 * k) + 4 * model.n_heads
    swiglu = 3 * step.compute * inner
    inputs = _trained_inputs(model, step) if step.full else _adapter_inputs(model, step)
    return step.tokens * (norms + attention + swiglu + inputs)


def _trained_inputs(model: Model, step: Step) -> int:
    """Per token: the normalised vectors, and the inputs of the linears; that of o is the attention's output."""
    copies = 5 if step.own_inputs else 2
    return (2 * step.residual + copies * step.compute) * model.hidden_size + step.compute * model.intermediate_size


def _adapter_inputs(model: Model, step: Step) -> int:
    """Per token: what the adapters of one layer keep."""
    inputs = {name: linear_sizes(model)[name][0] for name in step.targets}
    masks = step.mask_bytes * sum(inputs.values()) if step.dropout else 0
    hidden = step.rank * step.adapter * len(inputs)
    if step.dropout or step.casts:
        return step.adapter * sum(inputs.values()) + masks + hidden
    groups = sum(any(name in inputs for name in group) for group in SHARED_INPUTS)
    return step.adapter * (groups * model.hidden_size + inputs.get("down_proj", 0)) + hidden


def first_layer_saves(model: Model, step: Step) -> int:
    """Bytes that the first layer of a model with a frozen embedding keeps less than the others."""
    if step.full:
        return 0
    masked = sum(name in step.targets for name in SHARED_INPUTS[0]) if step.dropout else 0
    return step.tokens * (4 * model.hidden_size + 4 + masked * step.mask_bytes * model.hidden_size)


def ends_bytes(model: Model, step: Step) -> int:
    """Bytes kept outside the layers: last norm, head's input where it is trained, positions, token ids, labels."""
    h = model.hidden_size
    last = 4 * h + 4 + 8 + (step.residual * h + step.compute * h + 8 if step.full else 0)
    return step.tokens * last + 2 * model.head_dim * step.context * step.residual


def saved_bytes(model: Model, step: Step) -> int:
    """All that is kept for the backward pass, without the logits and without copies of weights."""
    return model.layers * layer_bytes(model, step) - first_layer_saves(model, step) + ends_bytes(model, step)


def checkpointed_bytes(model: Model, step: Step) -> int:
    """The same with gradient checkpointing of every layer: only each layer's input stays."""
    return model.layers * step.tokens * step.residual * model.hidden_size + ends_bytes(model, step)


def logits_bytes(model: Model, step: Step) -> int:
    """What cross entropy keeps: the log-probabilities in fp32, tokens * vocabulary * 4 bytes."""
    return 4 * step.tokens * model.vocab


def layer_working_bytes(model: Model, step: Step, dequantized: bool) -> int:
    """Buffers of one layer's backward pass, at its widest in the MLP: an upper bound, not a count.

    Gradients of the product, of silu(gate), of up and of gate; the adapter's gradient of down's input; the residual's
    gradient in the computation's type and in fp32; with 4-bit weights one matrix as 16-bit numbers.
    """
    wide = (4 * step.compute + step.adapter) * model.intermediate_size
    narrow = (step.residual + 4) * model.hidden_size
    matrix = 2 * model.hidden_size * model.intermediate_size if dequantized else 0
    return step.tokens * (wide + narrow) + matrix
