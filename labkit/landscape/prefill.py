"""The peak of reading a prompt: what lies in memory at once while one layer works on all its tokens."""

from labkit.landscape.models import Model

BYTES = 2  # activations are 16-bit numbers
LOGIT_BYTES = 4


def activation_bytes(model: Model, tokens: int, batch: int, cards: int) -> tuple[int | None, str]:
    """Bytes of the activations at the widest moment of a layer, and why they need checking ("" when they do not).

    tokens * batch * 2 bytes * (3 * inner + 4 * hidden + 2 * head_dim) + batch * vocabulary * 4 bytes, on each card.
    Three vectors of the gated MLP are there at once (silu(gate), up, and their product); of the hidden width four
    (the embeddings, the layer's input, the sum after attention, its normalised form), and the two tables of rotary
    positions. Fused attention keeps no tokens x tokens matrix, and logits are made for the last token alone. In a
    mixture each token has its own copy at every expert that it goes to. A model that is split over `cards` has such a
    peak on each. It is the order in which transformers' modules run; an engine that reads a prompt in pieces has the
    peak of one piece.
    """
    unknown = "activations: verify, the width of the MLP is unknown"
    if not model.hidden_size:
        return None, unknown
    copies = (model.experts_per_token or 0) if model.kind == "moe" else 1
    inner = model.expert_size if model.kind == "moe" else model.intermediate_size
    if not (inner and copies):
        return None, unknown
    gathered = 2 * copies * model.hidden_size if model.kind == "moe" else 0
    width = 3 * copies * inner + 4 * model.hidden_size + gathered + 2 * (model.head_dim or 0)
    return cards * (tokens * batch * BYTES * width + batch * (model.vocab or 0) * LOGIT_BYTES), ""
