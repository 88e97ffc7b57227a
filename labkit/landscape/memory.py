"""How much memory a model needs to answer, from its dimensions: weights, key-value cache, activations, overhead.

Four parts because they grow with different things: weights with the format, the cache with context and batch, the
activations with the longest prompt that is read at once, overhead with none. Where a layout has no plain formula the
cache is left unknown ("verify") rather than guessed. 1 GB is 10^9 bytes, 1 GiB is 2^30 bytes; both are given, because
cards are sold in one and drivers report the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from labkit.errors import LabError
from labkit.landscape.configs import model_at
from labkit.landscape.models import Model
from labkit.landscape.prefill import activation_bytes
from labkit.landscape.quantization import find_quantization, split_format
from labkit.landscape.tables import UNKNOWN
from labkit.landscape.weights import weight_bytes

GB, GIB = 10**9, 2**30
CACHE_BYTES = 2  # the cache holds 16-bit numbers unless a runtime is told otherwise
# CUDA context and framework. The constant that xinference 4.1.0 and gpu_poor use; no maker publishes a figure.
OVERHEAD = 650 * 2**20
PARTS = ("weights", "kv_cache", "activations", "overhead", "total")


@dataclass(frozen=True)
class MemoryEstimate:
    """The parts in bytes; None where a part is unknown. `reasons` say why the status is verify, `notes` what holds
    in any case. `prompt` is the longest piece of a prompt that is read at once. On several `cards` the parts are sums.
    """

    model: str
    quant: str
    context: int
    batch: int
    prompt: int
    cards: int
    weights: int | None
    kv_cache: int | None
    activations: int | None
    overhead: int
    reasons: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def label(self) -> str:
        """A short name for a bar: the model without its maker, the format, the tokens held at once."""
        return f"{self.model.split('/')[-1]} {self.quant}, {self.context:,} tokens x {self.batch}"

    @property
    def status(self) -> str:
        return UNKNOWN if self.reasons else "ok"

    @property
    def total(self) -> int | None:
        parts = (self.weights, self.kv_cache, self.activations, self.overhead)
        return None if None in parts else sum(parts)

    @property
    def total_gib(self) -> float | None:
        return in_unit(self.total, GIB)

    def fits(self, card_gb: float) -> str:
        """Whether a card of so many GB (10^9 bytes) holds it: yes, verify, or no where the known parts are too much."""
        known = sum(part for part in (self.weights, self.kv_cache, self.activations, self.overhead) if part)
        return "no" if known > card_gb * GB else UNKNOWN if self.total is None else "yes"

    def as_dict(self) -> dict:
        """What `labkit memory --json` prints: each part in GB and GiB (null where unknown), status and reasons."""
        head = {"model": self.model, "mode": "inference", "quant": self.quant, "context": self.context}
        head |= {"batch": self.batch, "prompt": self.prompt, "cards": self.cards}
        end = {"status": self.status, "reasons": list(self.reasons), "notes": list(self.notes)}
        return {**head, **both_units({part: getattr(self, part) for part in PARTS}), **end}

    def as_text(self) -> str:
        """Lines for a terminal."""
        lines = [f"{self.model}, {self.quant}, context {self.context:,}, batch {self.batch}"]
        lines[0] += f", {self.cards} cards" if self.cards > 1 else ""
        names = {"kv_cache": "KV cache"}
        lines += [f"{names.get(part, part.capitalize())}: {size_text(getattr(self, part))}" for part in PARTS]
        lines += [f"Status: {self.status}", *(f"Reason: {text}" for text in self.reasons)]
        return "\n".join([*lines, *(f"Note: {text}" for text in self.notes)]) + "\n"


def both_units(parts: dict[str, int | None]) -> dict[str, float | None]:
    """Bytes by name as `name_gb` and `name_gib`."""
    units = (("gb", GB), ("gib", GIB))
    return {f"{name}_{unit}": in_unit(value, size) for name, value in parts.items() for unit, size in units}


def in_unit(value: int | None, unit: int) -> float | None:
    return None if value is None else round(value / unit, 4)


def size_text(value: int | None) -> str:
    """Bytes as "16.06 GB (14.96 GiB)", in MB and MiB below a tenth of a GB; "verify" where unknown."""
    if value is None:
        return UNKNOWN
    if value < GB / 10:
        return f"{value / 1e6:.2f} MB ({value / 2**20:.2f} MiB)"
    return f"{value / GB:.2f} GB ({value / GIB:.2f} GiB)"


def memory_estimate(
    model: str | Model, quant: str = "", context: int = 4096, batch: int = 1, prompt: int | None = None, cards: int = 1
) -> MemoryEstimate:
    """What `model` (a row, its name, a folder, a config.json) needs for `batch` requests of `context` tokens at once.

    `context` counts prompt and answer together; `prompt` tokens of it are read in one piece, all of it unless given.
    Without `quant` the format that the name ends in counts (…-AWQ), else bf16. Raises LabError for an unknown model or
    format, or a size below 1.
    """
    prompt = context if prompt is None else prompt
    for name, value in (("context", context), ("batch", batch), ("prompt", prompt), ("cards", cards)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise LabError(f"{name} is {value!r}", f"give --{name} as a whole number of at least 1")
    if prompt > context:
        raise LabError(
            f"a prompt of {prompt} tokens is longer than the context of {context}", "give a longer --context"
        )
    row = model_at(model) if isinstance(model, str) else model
    named = split_format(model)[1] if isinstance(model, str) else ""
    form = find_quantization(quant or named or "bf16")
    parts = (weight_bytes(row, form), kv_cache_bytes(row, context, batch), activation_bytes(row, prompt, batch, cards))
    reasons = [why for _, why in parts if why]
    if row.context_tokens and context > row.context_tokens:
        reasons.append(f"context: the model is made for {row.context_tokens:,} tokens, so {context:,} is untried")
    sizes = (*(size for size, _ in parts), cards * OVERHEAD)
    return MemoryEstimate(
        row.repo_id, form.format, context, batch, prompt, cards, *sizes, tuple(reasons), _notes(row, prompt)
    )


def kv_cache_bytes(model: Model, context: int, batch: int) -> tuple[int | None, str]:
    """Bytes of the key-value cache in 16 bit, and why they need checking ("" when they do not).

    mha, gqa: 2 * layers * n_kv_heads * head_dim * tokens * batch * 2 bytes (NVIDIA, "Mastering LLM Techniques:
    Inference Optimization"); head_dim is the config's own, not hidden_size / heads.
    mla: layers * (kv_lora_rank + qk_rope_head_dim) * tokens * batch * 2 bytes (DeepSeek-V2, arXiv 2405.04434).
    sliding: the first formula, with local layers capped at their window. hybrid: only the full-attention layers.
    The last two take the layer counts from each model's config.json.
    """
    unknown = "KV cache: verify, this attention layout has no plain formula or its sizes are unknown"
    tokens = context * batch
    if model.attention == "mla" and model.full_layers and model.mla_width:
        return model.full_layers * model.mla_width * tokens * CACHE_BYTES, ""
    if model.attention not in ("mha", "gqa", "sliding", "hybrid"):
        return None, unknown
    if not (model.full_layers and model.n_kv_heads and model.head_dim):
        return None, unknown
    per_layer = 2 * model.n_kv_heads * model.head_dim * CACHE_BYTES
    size = model.full_layers * per_layer * tokens
    if model.attention == "sliding":
        if not (model.window_layers and model.window_tokens):
            return None, unknown
        size += model.window_layers * per_layer * min(context, model.window_tokens) * batch
    return size, ""


def _notes(model: Model, prompt: int) -> tuple[str, ...]:
    notes = ["overhead is a constant that other tools use (650 MiB on each card), not a measurement of your machine"]
    notes.append("the cache is counted in 16 bit")
    pieces = f"{prompt:,} token{'s' * (prompt > 1)}"
    notes.append(f"activations are counted for a prompt of which {pieces} are read at once; --prompt says how many")
    if model.attention == "sliding":
        notes.append("a runtime that does not cap the local layers at their window needs more cache")
    if model.attention == "hybrid":
        notes.append("the constant state of the linear layers is not counted; it does not grow with the context")
    if model.mtp_layers:
        notes.append("the weights count the file's multi-token-prediction layer, which transformers does not load")
    if model.tied_embeddings is None and model.vocab:
        notes.append("whether head and embedding are shared was not checked; two tables are assumed")
    return tuple(notes)


def memory_rows(estimates: Sequence[MemoryEstimate]) -> list[dict[str, str]]:
    """One row of text per estimate, for a table beside the bars."""
    return [
        {
            "model": estimate.model,
            "format": estimate.quant,
            "context": f"{estimate.context:,}",
            "batch": str(estimate.batch),
            **{part.replace("kv_cache", "KV cache"): size_text(getattr(estimate, part)) for part in PARTS},
            "status": estimate.status,
        }
        for estimate in estimates
    ]
