"""Checkpoints and their dimensions: what a memory estimate and a model decision start from."""

import difflib
import json
import re
from dataclasses import dataclass, replace
from datetime import date
from functools import cache
from pathlib import Path
from typing import ClassVar

from labkit.errors import LabError
from labkit.landscape.quantization import split_format
from labkit.landscape.tables import LANDSCAPE, read_table
from labkit.layout import EMBEDDED, MODELS

KINDS = ("dense", "moe")
DIMENSIONS = ("layers", "hidden_size", "n_heads", "n_kv_heads", "intermediate_size", "vocab", "tied_embeddings")
_TUNED = re.compile(r"-(?:instruct|it|chat|base|pt)(?![a-z])")
ATTENTION = ("gqa", "mha", "mla", "sliding", "hybrid", "unknown", "")


@dataclass(frozen=True)
class Model:
    """One checkpoint. Counts in billions (10^9) of parameters; None or "" where nobody has checked.

    `line` is the part of the family that the maker names as one release; `aliases` are other names of the same sizes.
    The total counts `encoder_params_b` (images, sound) and `mtp_layers` (multi-token prediction) where there are any.
    `model_type`, and the pairs in `config` beside the sizes, are what transformers' config.json has.
    `full_layers` keep a key-value cache that grows with the context, `window_layers` one that stops at
    `window_tokens`; `mla_width` is kv_lora_rank + qk_rope_head_dim. `openness` is full-open (data and code public
    too), permissive (weights under Apache-2.0, MIT or alike) or open-weight (weights with conditions).
    """

    expires_days: ClassVar[int | None] = None

    repo_id: str
    family: str
    developer: str
    kind: str
    source_url: str
    source_version: str
    basis: str
    params_total_b: float | None = None
    line: str = ""
    aliases: tuple[str, ...] = ()
    params_active_b: float | None = None
    encoder_params_b: float | None = None
    mtp_layers: int | None = None
    params_basis: str = ""
    layers: int | None = None
    hidden_size: int | None = None
    n_heads: int | None = None
    n_kv_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None
    experts: int | None = None
    experts_per_token: int | None = None
    expert_size: int | None = None
    vocab: int | None = None
    tied_embeddings: bool | None = None
    attention: str = ""
    full_layers: int | None = None
    window_layers: int | None = None
    window_tokens: int | None = None
    mla_width: int | None = None
    model_type: str = ""
    config: tuple[str, ...] = ()
    context_tokens: int | None = None
    native_dtype: str = ""
    modalities: tuple[str, ...] = ()
    openness: str = ""
    gated: bool | None = None
    released: str = ""
    base_model: str = ""
    japanese: str = ""
    notes: str = ""
    seen: date | None = None

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}, not one of {', '.join(KINDS)}")
        if self.attention not in ATTENTION:
            raise ValueError(f"attention is {self.attention!r}, not one of {', '.join(filter(None, ATTENTION))}")
        zeros = [name for name, value in vars(self).items() if value == 0 and not isinstance(value, bool)]
        if zeros:
            raise ValueError(f"{', '.join(zeros)} is 0: leave an unknown blank")
        if (self.params_active_b or 0) > (self.params_total_b or float("inf")):
            raise ValueError("more parameters are active than there are")

    @property
    def dimensions_known(self) -> bool:
        """Whether the row holds all that rebuilding the model takes."""
        return all(getattr(self, name) is not None for name in DIMENSIONS) and bool(self.model_type)


def load_models(path: Path = LANDSCAPE / "models.csv") -> tuple[Model, ...]:
    """Every checkpoint of the table; the embedded model's sizes are read from its own config where it is there."""
    config = MODELS / EMBEDDED / "config.json"
    rows = _rows(path)
    if not config.exists():
        return rows
    return tuple(with_config(row, config) if row.repo_id == EMBEDDED else row for row in rows)


@cache
def _rows(path: Path) -> tuple[Model, ...]:
    return read_table(path, Model, key="repo_id")


def with_config(row: Model, config: Path) -> Model:
    """`row` with the sizes of a Llama-architecture `config.json`, its parameters counted from them.

    Count: embedding (and head, unless tied) + per layer four attention matrices, three of the gated MLP and two norms
    + one final norm; the layout of transformers' LlamaForCausalLM. A config that does not say whether head and
    embedding are shared is counted with two tables. Raises LabError for a config without these fields.
    """
    try:
        values = json.loads(Path(config).read_text(encoding="utf-8"))
        hidden, layers, heads = (values[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
        vocab, inner, context = (values[k] for k in ("vocab_size", "intermediate_size", "max_position_embeddings"))
        kv_heads, tied = values.get("num_key_value_heads") or heads, values.get("tie_word_embeddings")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LabError(
            f"{Path(config).parent.name}/config.json cannot be used: {error}", "restore it from the repository"
        ) from None
    head_dim = values.get("head_dim") or hidden // heads
    attention = 2 * hidden * head_dim * (heads + kv_heads)
    total = vocab * hidden * (1 if tied else 2) + layers * (attention + 3 * hidden * inner + 2 * hidden) + hidden
    return replace(
        row,
        params_total_b=total / 1e9,
        params_basis="derived from the config",
        layers=layers,
        full_layers=layers,
        hidden_size=hidden,
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=inner,
        vocab=vocab,
        tied_embeddings=tied,
        context_tokens=context,
        attention="mha" if heads == kv_heads else "gqa",
    )


def find_model(name: str) -> Model:
    """The checkpoint called `name`: its repo id, the part after the slash, or an alias, in any case.

    The name of its quantized repository does too (Qwen/Qwen3-8B-AWQ, QuantTrio/Qwen3.5-9B-AWQ), and that of the base
    model that it was tuned from, whose sizes are the same (google/gemma-2-9b for gemma-2-9b-it). Raises LabError with
    the nearest names for a model that the table does not hold.
    """
    rows = load_models()
    for wanted in (name.strip().lower(), split_format(name)[0].lower()):
        for part in (wanted, wanted.split("/")[-1]):
            for row in rows:
                if part in names_of(row):
                    return row
    for row in rows:
        if _untuned(wanted.split("/")[-1]) in map(_untuned, names_of(row)):
            return row
    known = {row.repo_id.lower().split("/")[-1]: row.repo_id for row in rows}
    near = [known[n] for n in difflib.get_close_matches(wanted.split("/")[-1], known, n=3, cutoff=0.5)]
    hint = f"did you mean {', '.join(near)}" if near else "`labkit models` lists those that are known"
    raise LabError(f"the landscape has no model called {name!r}", hint)


def _untuned(name: str) -> str:
    """The name without the word for the tuned or the base model of one size."""
    return _TUNED.sub("", name)


def names_of(row: Model) -> tuple[str, ...]:
    """What the checkpoint answers to, in small letters."""
    return tuple(text for name in (row.repo_id, *row.aliases) for text in (name.lower(), name.lower().split("/")[-1]))
