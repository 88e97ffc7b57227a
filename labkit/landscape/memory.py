"""How much memory a model needs, from its dimensions: weights, key-value cache, overhead.

Three parts because they grow with different things: weights with the format, the cache with context and batch,
overhead with neither. Where a layout has no plain formula the cache is left unknown ("verify") rather than guessed.
1 GB is 10^9 bytes, 1 GiB is 2^30 bytes; both are given, because cards are sold in one and drivers report the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import ClassVar

from labkit.errors import LabError
from labkit.landscape.configs import model_at
from labkit.landscape.models import Model
from labkit.landscape.tables import LANDSCAPE, UNKNOWN, read_table

GB, GIB = 10**9, 2**30
CACHE_BYTES = 2  # the cache holds 16-bit numbers unless a runtime is told otherwise
# CUDA context and framework. The constant that xinference 4.1.0 and gpu_poor use; no maker publishes a figure.
OVERHEAD = 650 * 2**20
SCOPES = ("all", "linears", "experts")


@dataclass(frozen=True)
class Quantization:
    """A weight format. `bits_per_weight` counts scales; `scope` says which weights it applies to.

    all: the whole file. linears: all but embedding, head and norms, which stay in 16 bit. experts: only the experts
    of a mixture; attention stays in 16 bit too.
    """

    expires_days: ClassVar[int | None] = None

    format: str
    bits_per_weight: float
    scope: str
    basis: str
    source_url: str
    aliases: tuple[str, ...] = ()
    notes: str = ""
    seen: date | None = None

    def __post_init__(self):
        if self.scope not in SCOPES:
            raise ValueError(f"scope is {self.scope!r}, not one of {', '.join(SCOPES)}")
        if self.bits_per_weight == 0:
            raise ValueError("bits_per_weight is 0")


@dataclass(frozen=True)
class MemoryEstimate:
    """The parts in bytes; None where a part is unknown. `reasons` say why the status is verify, `notes` what holds
    in any case. The estimate counts no peak of a long prompt's prefill and no second copy while loading.
    """

    model: str
    quant: str
    context: int
    batch: int
    weights: int | None
    kv_cache: int | None
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
        return None if self.weights is None or self.kv_cache is None else self.weights + self.kv_cache + self.overhead

    @property
    def weights_gb(self) -> float | None:
        return _in(self.weights, GB)

    @property
    def weights_gib(self) -> float | None:
        return _in(self.weights, GIB)

    @property
    def kv_cache_gb(self) -> float | None:
        return _in(self.kv_cache, GB)

    @property
    def kv_cache_gib(self) -> float | None:
        return _in(self.kv_cache, GIB)

    @property
    def overhead_gb(self) -> float:
        return _in(self.overhead, GB)

    @property
    def overhead_gib(self) -> float:
        return _in(self.overhead, GIB)

    @property
    def total_gb(self) -> float | None:
        return _in(self.total, GB)

    @property
    def total_gib(self) -> float | None:
        return _in(self.total, GIB)

    def as_dict(self) -> dict:
        """What `labkit memory --json` prints: each part in GB and GiB (null where unknown), status and reasons."""
        parts = ("weights", "kv_cache", "overhead", "total")
        sizes = {f"{part}_{unit}": getattr(self, f"{part}_{unit}") for part in parts for unit in ("gb", "gib")}
        head = {"model": self.model, "quant": self.quant, "context": self.context, "batch": self.batch}
        return {**head, **sizes, "status": self.status, "reasons": list(self.reasons), "notes": list(self.notes)}

    def as_text(self) -> str:
        """Lines for a terminal."""
        lines = [f"{self.model}, {self.quant}, context {self.context:,}, batch {self.batch}"]
        for name, value in (
            ("Weights", self.weights),
            ("KV cache", self.kv_cache),
            ("Overhead", self.overhead),
            ("Total", self.total),
        ):
            lines.append(f"{name}: {size_text(value)}")
        lines += [f"Status: {self.status}", *(f"Reason: {text}" for text in self.reasons)]
        return "\n".join([*lines, *(f"Note: {text}" for text in self.notes)]) + "\n"


def _in(value: int | None, unit: int) -> float | None:
    return None if value is None else round(value / unit, 4)


def size_text(value: int | None) -> str:
    """Bytes as "16.06 GB (14.96 GiB)", in MB and MiB below a tenth of a GB; "verify" where unknown."""
    if value is None:
        return UNKNOWN
    if value < GB / 10:
        return f"{value / 1e6:.2f} MB ({value / 2**20:.2f} MiB)"
    return f"{value / GB:.2f} GB ({value / GIB:.2f} GiB)"


def load_quantizations(path: Path = LANDSCAPE / "quantization.csv") -> tuple[Quantization, ...]:
    return read_table(path, Quantization, key="format")


def find_quantization(name: str) -> Quantization:
    """The format called `name`, in any case. Raises LabError naming the known ones."""
    rows = load_quantizations()
    for row in rows:
        if name.strip().lower() in (row.format.lower(), *(alias.lower() for alias in row.aliases)):
            return row
    raise LabError(f"there is no format called {name!r}", f"choose one of {', '.join(row.format for row in rows)}")


def memory_estimate(model: str | Model, quant: str = "bf16", context: int = 4096, batch: int = 1) -> MemoryEstimate:
    """What `model` (a row, its name, a folder, a config.json) needs for `batch` requests of `context` tokens at once.

    `context` counts prompt and answer together. Raises LabError for an unknown model or format, or a size below 1.
    """
    for name, value in (("context", context), ("batch", batch)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise LabError(f"{name} is {value!r}", f"give --{name} as a whole number of at least 1")
    row = model_at(model) if isinstance(model, str) else model
    form = find_quantization(quant)
    weights, why_weights = weight_bytes(row, form)
    cache, why_cache = kv_cache_bytes(row, context, batch)
    reasons = [text for text in (why_weights, why_cache) if text]
    if row.context_tokens and context > row.context_tokens:
        reasons.append(f"context: the model is made for {row.context_tokens:,} tokens, so {context:,} is untried")
    return MemoryEstimate(
        row.repo_id, form.format, context, batch, weights, cache, OVERHEAD, tuple(reasons), _notes(row)
    )


def weight_bytes(model: Model, form: Quantization) -> tuple[int | None, str]:
    """Bytes of the weights, and why they need checking ("" when they do not).

    (quantized weights * bits + the others * 16) / 8. Bits are those of quantization.csv, measured or exact per block;
    that bitsandbytes, GPTQ and AWQ leave embedding, head and norms in 16 bit is what the published sizes of Qwen2.5
    and Qwen3 show. Of a mixture every expert is resident, so the total counts, never the active part.
    """
    if model.params_total_b is None:
        return None, "weights: verify, the number of parameters is unknown"
    total = round(model.params_total_b * 1e9)
    kept = {"all": 0, "linears": _unquantized(model), "experts": _outside_experts(model)}[form.scope]
    if kept is None:
        return None, f"weights: verify, which share {form.format} leaves in 16 bit is unknown for this layout"
    size = round(((total - kept) * form.bits_per_weight + kept * 16) / 8)
    if model.params_basis == "text part only":
        return size, "weights: verify, the count covers the text part and the image encoder comes on top"
    return size, ""


def _unquantized(model: Model) -> int | None:
    """Parameters of embedding, head (unless tied; assumed untied where unknown, the larger case) and norms."""
    if not (model.vocab and model.hidden_size and model.layers):
        return None
    tables = 1 if model.tied_embeddings else 2
    return tables * model.vocab * model.hidden_size + (2 * model.layers + 1) * model.hidden_size


def _outside_experts(model: Model) -> int | None:
    """Parameters of a mixture outside its experts: attention too. The router, under 0.1 %, is left out."""
    outside = _unquantized(model)
    if model.kind != "moe" or outside is None or not (model.n_heads and model.n_kv_heads and model.head_dim):
        return None
    return outside + model.layers * 2 * model.hidden_size * model.head_dim * (model.n_heads + model.n_kv_heads)


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


def _notes(model: Model) -> tuple[str, ...]:
    notes = ["overhead is a constant that other tools use (650 MiB), not a measurement of your machine"]
    notes.append("the cache is counted in 16 bit; the peak of a long prompt's prefill is not counted")
    if model.attention == "sliding":
        notes.append("a runtime that does not cap the local layers at their window needs more cache")
    if model.attention == "hybrid":
        notes.append("the constant state of the linear layers is not counted; it does not grow with the context")
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
            "weights": size_text(estimate.weights),
            "KV cache": size_text(estimate.kv_cache),
            "overhead": size_text(estimate.overhead),
            "total": size_text(estimate.total),
            "status": estimate.status,
        }
        for estimate in estimates
    ]
