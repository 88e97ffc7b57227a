"""A model that is no row of the tables: its dimensions are read from its own config.json."""

import json
import re
from dataclasses import replace
from pathlib import Path

from labkit.errors import LabError
from labkit.landscape.models import Model, find_model, with_config

# What marks a layout that has more than the plain blocks of Llama: its sizes are left unknown.
OTHER_LAYOUTS = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "kv_lora_rank",
    "linear_num_value_heads",
    "text_config",
)
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
PLAIN = ("llama", "mistral", "qwen2", "qwen3", "smollm3")


def model_at(name: str) -> Model:
    """The model that `name` says: a folder with a config.json, such a file, a row of the table of models, or the id of
    a hub repository whose config.json lies in the hub's cache.

    Raises LabError for a config that cannot be read, and for a name that is none of these.
    """
    path = Path(name).expanduser()
    config = path / "config.json" if path.is_dir() else path
    if config.name.endswith(".json") or path.is_dir():
        return model_of_config(config)
    try:
        return find_model(name)
    except LabError as error:
        if held := _cached(name):
            return replace(model_of_config(held), repo_id=name)
        if not _HUB_ID.fullmatch(name):
            raise
        fetch = f"{error.next_step}; or fetch its sizes, `hf download {name} config.json`, and ask again"
        raise LabError(error.what, fetch) from None


def _cached(name: str) -> Path | None:
    """Where the hub's cache holds the config.json of a repository; nothing is fetched."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json") if _HUB_ID.fullmatch(name) else None
    return Path(found) if isinstance(found, str) else None


def model_of_config(config: Path) -> Model:
    """A `Model` from the `config.json` of a checkpoint; what has no plain formula stays None, so it reads "verify".

    Llama, Mistral, Qwen2, Qwen3 and SmolLM3 are counted. Their biases and the norms of Qwen3's heads (under 0.1 % of
    the weights) are not.
    """
    config = Path(config)
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
        kind = values.get("model_type", "")
    except (OSError, ValueError, AttributeError) as error:
        raise LabError(f"{config.name} cannot be read: {error}", "give a model's folder or its config.json") from None
    row = Model(
        repo_id=config.resolve().parent.name,
        family=str(kind),
        developer="",
        kind="dense",
        source_url="",
        source_version="",
        basis="config",
        attention="unknown",
        model_type=str(kind),
    )
    if kind not in PLAIN or any(values.get(key) for key in OTHER_LAYOUTS):
        return row
    found = with_config(row, config)
    return _with_window(found, values)


def _with_window(row: Model, values: dict) -> Model:
    """`row` with the layers that keep no more than a window, where its config names them."""
    window = values.get("sliding_window")
    local = [kind for kind in values.get("layer_types") or () if kind != "full_attention"]
    if not window or values.get("use_sliding_window") is False or (values.get("layer_types") and not local):
        return row
    count = len(local) or row.layers
    return replace(
        row, attention="sliding", full_layers=(row.layers - count) or None, window_layers=count, window_tokens=window
    )
