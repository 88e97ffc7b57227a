"""An adapter and its base as one plain checkpoint."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from labkit.adaptation.lora.base import Base, find_base
from labkit.adaptation.lora.card import CARD, read_card, save_checkpoint, stored_type, versions
from labkit.adaptation.lora.run import loading, unwritable
from labkit.errors import LabError
from labkit.evidence import json_text, write_atomically
from labkit.export.checkpoint import read_config
from labkit.generation.bits import load_what_peft_loads
from labkit.layout import ROOT

CONFIG = "adapter_config.json"
ADAPTER_FILES = (CONFIG, "adapter_model.safetensors")


def merge_adapter(adapter: Path, out: Path, model: str = "") -> Path:
    """Add the adapter's B A, scaled by alpha / r, to its base's weights, and write `out` in the base's number format,
    with a card that says what it was made from.

    The sum is made in fp32, so the base takes four bytes a parameter here. `model` says where the base is when the
    adapter does not. Raises LabError for a folder that is no adapter, a base of another revision than the
    adapter was trained on, and a folder `out` that is not empty.
    """
    load_what_peft_loads()
    from peft import PeftModel

    from labkit.generation.adapters import peft_at_work

    adapter, out = Path(adapter), Path(out)
    base = adapter_base(adapter, model)
    if out.exists() and not out.is_dir():
        raise LabError(f"{out.name} is a file", "give a folder with --out")
    if out.exists() and any(out.iterdir()):
        raise LabError(f"the folder {out.name} is not empty", "choose another folder with --out")
    with loading(base.name):
        tokenizer = AutoTokenizer.from_pretrained(base.source, trust_remote_code=False)
        network = AutoModelForCausalLM.from_pretrained(base.source, dtype=torch.float32, trust_remote_code=False)
        with peft_at_work():
            merged = PeftModel.from_pretrained(network, adapter).merge_and_unload(safe_merge=True)
    try:
        save_checkpoint(merged, tokenizer, out, stored_type(base.source))
        write_atomically(out / CARD, json_text(_card(adapter, base)).encode())
    except OSError as error:
        raise unwritable(out, error) from error
    return out


def _card(adapter: Path, base: Base) -> dict:
    from labkit.generation.adapters import adapter_revision

    made_from = {"base_model": base.name, "base_revision": base.revision, "adapter": adapter.resolve().name}
    return {
        "kind": "merged",
        **made_from,
        "adapter_revision": adapter_revision(adapter, base.revision),
        "versions": versions(),
        "command": "labkit merge ADAPTER --out DIR",
    }


def adapter_base(adapter: Path, model: str = "") -> Base:
    """The base that `adapter` was trained on, found by `model` or by what the adapter says, and of the right revision.

    Raises LabError for a folder that is no adapter, and for a base of another revision: an adapter is a difference, and
    means nothing on other weights.
    """
    adapter = Path(adapter)
    missing = [name for name in ADAPTER_FILES if not (adapter / name).is_file()]
    if missing:
        raise LabError(f"{adapter.name} is no adapter: {', '.join(missing)} is not there", "give labkit lora's folder")
    card = read_card(adapter)
    base = find_base(model or _where(adapter))
    if base.revision != card["base_revision"]:
        trained = card["base_revision"]
        what = f"the adapter was trained on revision {trained} of its base, and {base.name} holds {base.revision}"
        raise LabError(what, "give the base of that revision with --model, or train the adapter again")
    return base


def _where(adapter: Path) -> str:
    """peft's own note says where the base is, from the workbook's folder on; the card says what it is called."""
    name = str(read_config(adapter, CONFIG).get("base_model_name_or_path") or "")
    if not name:
        raise LabError(f"{CONFIG} of {adapter.name} names no base", "say with --model where the base is")
    return str(ROOT / name) if (ROOT / name).is_dir() else name
