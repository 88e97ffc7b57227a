"""Checkpoints and their dimensions: what a memory estimate and a model decision start from."""

import difflib
import json
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import ClassVar

from labkit.errors import LabError
from labkit.landscape.licences import licence_names
from labkit.landscape.tables import LANDSCAPE, age_text, read_table, shown
from labkit.layout import MODELS

EMBEDDED = "mini-instruct"
KINDS = ("dense", "moe")
ATTENTION = ("gqa", "mha", "mla", "sliding", "hybrid", "unknown", "")


@dataclass(frozen=True)
class Model:
    """One checkpoint. Counts in billions (10^9) of parameters; None or "" where nobody has checked.

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
    params_active_b: float | None = None
    params_basis: str = ""
    layers: int | None = None
    hidden_size: int | None = None
    n_heads: int | None = None
    n_kv_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None
    vocab: int | None = None
    tied_embeddings: bool | None = None
    attention: str = ""
    full_layers: int | None = None
    window_layers: int | None = None
    window_tokens: int | None = None
    mla_width: int | None = None
    context_tokens: int | None = None
    native_dtype: str = ""
    openness: str = ""
    released: str = ""
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


def load_models(path: Path = LANDSCAPE / "models.csv") -> tuple[Model, ...]:
    """Every checkpoint of the table; the embedded model's sizes are read from its own config where it is there."""
    config = MODELS / EMBEDDED / "config.json"
    rows = read_table(path, Model, key="repo_id")
    if not config.exists():
        return rows
    return tuple(with_config(row, config) if row.repo_id == EMBEDDED else row for row in rows)


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
    """The checkpoint called `name`: its repo id, or the part after the slash, in any case.

    Raises LabError with the nearest names for a model that the table does not hold.
    """
    rows = load_models()
    wanted = name.strip().lower()
    for row in rows:
        if wanted in (row.repo_id.lower(), row.repo_id.lower().split("/")[-1]):
            return row
    known = {row.repo_id.lower().split("/")[-1]: row.repo_id for row in rows}
    near = [known[n] for n in difflib.get_close_matches(wanted.split("/")[-1], known, n=3, cutoff=0.5)]
    hint = f"did you mean {', '.join(near)}" if near else "`labkit models` lists those that are known"
    raise LabError(f"the landscape has no model called {name!r}", hint)


def models_of(family: str = "") -> tuple[Model, ...]:
    """The checkpoints of `family` (any case), or all. Raises LabError naming the families for an unknown one."""
    rows = load_models()
    found = tuple(row for row in rows if not family or row.family.lower() == family.strip().lower())
    if not found:
        names = ", ".join(dict.fromkeys(row.family for row in rows))
        raise LabError(f"there is no family called {family!r}", f"choose one of {names}")
    return found


def model_table(family: str = "", today: date | None = None) -> list[dict[str, str]]:
    """One row of text per checkpoint for a screen: sizes, licence, openness, age of the facts; blanks say "verify"."""
    return [
        {
            "model": row.repo_id,
            "family": row.family,
            "kind": row.kind,
            "total (B)": shown(row.params_total_b),
            "active (B)": shown(row.params_active_b if row.kind == "moe" else row.params_total_b),
            "context": shown(row.context_tokens),
            "licence": licence_names(row.repo_id),
            "openness": shown(row.openness),
            "age": age_text(row, today),
            "source": row.source_url,
        }
        for row in models_of(family)
    ]
