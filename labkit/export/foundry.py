"""An ONNX export in the folder layout of Foundry Local: inference_model.json beside graph, tokenizer and configuration.

The command line of the first generation finds a model by that file below its cache folder, PUBLISHER/NAME/, and takes
name and prompt from it (learn.microsoft.com/azure/foundry-local/how-to/how-to-compile-hugging-face-models, seen
2026-11-27). It reads Name and PromptTemplate; the other fields are for people and for programs like this one. The SDK
from 2.2 on registers the folder instead and reads the chat template itself.
"""

import re
import shutil
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedConfig

from labkit.errors import LabError
from labkit.evidence import json_text, write_atomically
from labkit.export.checkpoint import read_config
from labkit.export.inference_model import INFERENCE_MODEL, check_inference_model
from labkit.export.onnx import GENAI_CONFIG
from labkit.export.onnx_folder import is_onnx_export
from labkit.export.prompt_template import derive_template

PUBLISHER = "labkit"
_FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # as the schema has it for Name

# Both generations of Foundry Local's command line, as their documentation has them. They are for Windows and macOS and
# were not run by this project.
COMMANDS = {
    "old command line, to 0.8 (Windows, macOS; not run here)": (
        "foundry cache cd {cache}",
        "foundry cache ls",
        "foundry model run {name}",
    ),
    "new command line, 0.10 preview (Windows, macOS; not run here)": ("foundry model list", "foundry run {name}"),
}


def inference_model(export: Path, name: str, description: str, version: str = "1") -> dict:
    """The contents of inference_model.json for the ONNX export in a folder, checked against the schema.

    The numbers are those of its genai_config.json, which the builder took from the generation configuration.
    Raises LabError for a folder that holds no export, a template that strings cannot say, and a name that is none.
    """
    _require_export(export)
    with_tokenizer = AutoTokenizer.from_pretrained(
        export, config=PreTrainedConfig.from_dict({}), trust_remote_code=False, local_files_only=True
    )
    search = read_config(export, GENAI_CONFIG).get("search", {})
    config = {key: search.get(key, 1.0) for key in ("temperature", "top_p", "repetition_penalty")}
    made = {
        "Name": name,
        "Description": description,
        "Version": version,
        "PromptTemplate": derive_template(with_tokenizer).as_dict(),
        "ModelConfig": {"max_length": search.get("max_length", 0), **config},
    }
    check_inference_model(made)
    return made


def lay_out(export: Path, cache: Path, made: dict, publisher: str = PUBLISHER) -> Path:
    """Copy the export to cache/PUBLISHER/NAME with its inference_model.json; the folder.

    Raises LabError where another model has that place, for a publisher that is no plain folder name, and where nothing
    can be written.
    """
    _require_export(export)
    if not _FOLDER_NAME.fullmatch(publisher):
        what = f"{publisher!r} is no name for a publisher's folder"
        raise LabError(what, "give --publisher letters, digits, dots and dashes, such as labkit")
    folder = cache / publisher / made["Name"]
    if folder.exists() and any(folder.iterdir()):
        raise LabError(f"{publisher}/{made['Name']} is there already", "choose another --name, or remove that folder")
    try:
        shutil.copytree(export, folder, dirs_exist_ok=True)
        write_atomically(folder / INFERENCE_MODEL, json_text(made).encode())
    except OSError as error:
        reason = getattr(error, "strerror", None) or "not every file could be copied"
        what = f"{publisher}/{made['Name']} could not be written: {reason}"
        raise LabError(what, "choose another folder with --out, or free some space") from error
    return folder


def commands(cache: Path, name: str) -> dict[str, list[str]]:
    """What to type on Windows or macOS, by generation of Foundry Local's command line."""
    return {title: [line.format(cache=cache, name=name) for line in lines] for title, lines in COMMANDS.items()}


def _require_export(folder: Path) -> None:
    if not is_onnx_export(folder):
        what = f"{folder.name} is no ONNX export: {GENAI_CONFIG} or the graph is not there"
        raise LabError(what, "make one with `labkit export onnx MODEL --out DIR`")
