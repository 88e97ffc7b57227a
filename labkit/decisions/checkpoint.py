"""The model that is decided on, described from its files without loading it."""

from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabError
from labkit.export.checkpoint import count_parameters, read_config, weights_revision
from labkit.landscape.licences import licence_names
from labkit.landscape.memory import GIB, memory_estimate
from labkit.landscape.models import EMBEDDED, find_model
from labkit.layout import MODELS, display_path


@dataclass(frozen=True)
class Checkpoint:
    """The model that was decided. `size` is text: parameters and bytes of weights; `local` means on this disk.

    `made_from` is the base that `labkit lora --full` or `labkit merge` made it from, "NAME at REVISION", with + and the
    digits of an adapter that was merged; it is empty for any other model.
    """

    name: str
    revision: str
    size: str
    licence: str
    source: str
    local: bool
    made_from: str = ""


def describe_checkpoint(model: str = EMBEDDED, revision: str = "") -> Checkpoint:
    """The checkpoint called `model`: the embedded one, a folder with safetensors, or a row of the landscape.

    A local revision is the first 12 hex digits of the sha256 of the weights, the rule of load_chat_model.
    A hub model's is the commit given as `revision`; without one the field stays a placeholder, which `labkit verify`
    reports. Raises LabError for a folder without weights, or a name that is neither.
    """
    folder = MODELS / EMBEDDED if model == EMBEDDED else Path(model).expanduser()
    if model != EMBEDDED and not folder.is_dir():
        row = find_model(model)
        count = f"{row.params_total_b:g} B parameters" if row.params_total_b else "number of parameters to verify"
        return Checkpoint(
            row.repo_id,
            revision or "_____ (the hub commit, known after the first download)",
            f"{count}, weights in bf16: {_gib(row.repo_id)}",
            licence_names(row.repo_id),
            f"https://huggingface.co/{row.repo_id}",
            local=False,
        )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise LabError(
            f"the model folder {folder.name} holds no safetensors file",
            "fetch the whole repository, or name another model",
            where=display_path(folder),
        )
    count, size = sum(map(count_parameters, weights)), sum(file.stat().st_size for file in weights)
    size_text = f"{count:,} parameters, {size / 1e6:.1f} MB of weights"
    licence = licence_names(EMBEDDED) if model == EMBEDDED else "verify: read the licence in the folder"
    source, made_from = display_path(folder), _made_from(folder)
    return Checkpoint(folder.name, weights_revision(folder), size_text, licence, source, True, made_from)


def _made_from(folder: Path) -> str:
    card = read_config(folder, "card.json")
    revision = card.get("adapter_revision") or card.get("base_revision")
    return f"{card['base_model']} at {revision}" if card.get("base_model") and revision else ""


def _gib(repo_id: str) -> str:
    weights = memory_estimate(repo_id).weights
    return "to verify" if weights is None else f"{weights / GIB:.1f} GiB"
