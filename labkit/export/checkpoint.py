"""What the files of a checkpoint's folder say of it, read without loading the model."""

import json
import math
from pathlib import Path

from labkit.errors import LabError
from labkit.evidence import sha256_of


def weight_files(folder: Path) -> list[Path]:
    if folder.is_file():
        return [folder]
    kinds = ("*.safetensors", "*.bin", "*.onnx.data", "*.onnx")
    return next((files for kind in kinds if (files := sorted(folder.glob(kind)))), [])


def weights_size(folder: Path) -> int:
    """Bytes."""
    return sum(file.stat().st_size for file in weight_files(folder))


def weights_revision(folder: Path) -> str:
    """The first 12 hex digits of the sha256 of the weights (their first file), so that two runs can be told apart."""
    weights = weight_files(folder)
    return sha256_of(weights[0])[:12] if weights else "unknown"


def count_parameters(path: Path) -> int:
    """Parameters in a safetensors file, from its header alone: 8 bytes of length, then JSON with each tensor's shape.

    Raises LabError when the file is not that.
    """
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > Path(path).stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        return sum(math.prod(tensor["shape"]) for tensor in header.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LabError(f"{Path(path).name} is not a safetensors file: {error}", "fetch it again") from None


def read_config(folder: Path, name: str = "config.json") -> dict:
    """A configuration file of the folder; empty where it is absent. Raises LabError when it is not a JSON object."""
    try:
        config = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise LabError(f"{name} of the model {folder.name} cannot be read: {error}", "fetch it again") from error
    if not isinstance(config, dict):
        raise LabError(f"{name} of the model {folder.name} is not a JSON object", "fetch it again")
    return config
