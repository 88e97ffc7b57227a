"""Which backend runs a model, and why."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from labkit.environment import Device
from labkit.errors import LabError
from labkit.export.checkpoint import weights_size
from labkit.export.onnx import INSTALL, PRECISIONS, builder_installed, why_not_exportable
from labkit.export.onnx_folder import is_onnx_export

TRANSFORMERS, ONNX, LLAMA_CPP = "transformers", "onnx", "llama.cpp"
BACKENDS = ("auto", TRANSFORMERS, ONNX, LLAMA_CPP)
BITSANDBYTES = ("int8", "nf4", "nf4-dq")  # number formats of the backend transformers beside torch's own
TORCH_TYPES = ("float32", "bfloat16", "float16")
ONNX_DEVICE = Device("cpu", "the backend onnx runs on the CPU")
LARGEST_EXPORT = 2 * 10**9  # bytes of weights; nobody waits at a start for the export of more without having asked
ONNX_DTYPE = "int4"  # what "auto" means for it: with the options of PRECISIONS it keeps the embedded model's answers


@dataclass(frozen=True)
class Backend:
    """The backend's name and why it was chosen."""

    name: str
    reason: str


def choose_backend(
    wanted: str, source: Path | None, device: str, dtype: str = "auto", adapted: bool = False
) -> Backend:
    """The backend for a model on `device` in `dtype`: `source` is its folder or its GGUF file, None for a hub id.

    auto takes the fastest that keeps the answers: ONNX for a folder that can be exported, on a CPU; else transformers,
    which alone runs an `adapted` model and the 4-bit formats of bitsandbytes.
    Raises LabError for a backend that is asked for by name and cannot run the model here: never another in silence.
    """
    if wanted not in BACKENDS:
        raise LabError(f"there is no backend called {wanted!r}", f"choose one of {', '.join(BACKENDS)}")
    held = LLAMA_CPP if source and source.is_file() else ONNX if source and is_onnx_export(source) else ""
    if adapted and (wanted in (ONNX, LLAMA_CPP) or held):
        other = held or wanted
        what = f"the backend {other} runs no adapters"
        raise LabError(what, "use --backend transformers with the base's folder, or merge the adapter into it")
    if source is not None and source.is_file():
        return _for_gguf(wanted, source)
    if source is not None and is_onnx_export(source):
        return _for_export(wanted, source, device, dtype)
    if wanted == LLAMA_CPP:
        raise LabError("the backend llama.cpp reads GGUF files", "give --model the path of a .gguf file")
    why_not = "" if wanted == TRANSFORMERS else _why_not_onnx(source, device, dtype, adapted)
    if wanted == "auto" and not why_not and (size := weights_size(source)) > LARGEST_EXPORT:
        why_not = f"to export {size / 1e9:.1f} GB of weights to ONNX takes long, and is done with --backend onnx"
    if wanted == ONNX and why_not:
        raise LabError(f"the backend onnx cannot run this model: {why_not}", _remedy())
    if wanted != "auto":
        return Backend(wanted, f"asked for with --backend {wanted}")
    if why_not:
        return Backend(TRANSFORMERS, why_not)
    return Backend(ONNX, "onnxruntime is installed, the device is the CPU and the checkpoint can be exported")


def _for_gguf(wanted: str, source: Path) -> Backend:
    if wanted not in ("auto", LLAMA_CPP):
        what = f"the backend {wanted} reads a folder with a checkpoint, and {source.name} is a GGUF file"
        raise LabError(what, "use --backend llama.cpp, or give the folder")
    if not importlib.util.find_spec("llama_cpp"):
        raise LabError("llama.cpp is not installed here", "install it: pip install llama-cpp-python gguf")
    return Backend(LLAMA_CPP, "the model is a GGUF file")


def _for_export(wanted: str, source: Path, device: str, dtype: str) -> Backend:
    if wanted not in ("auto", ONNX):
        what = f"the backend {wanted} reads other files, and {source.name} is an ONNX export"
        raise LabError(what, "use --backend onnx, or give the checkpoint's folder")
    if device != "cpu" or dtype != "auto":
        asked = f"the device {device}" if device != "cpu" else f"the number format {dtype}"
        what = (
            f"{source.name} is an ONNX export, which has its number format and runs on the CPU here, not with {asked}"
        )
        raise LabError(what, "leave --device and --dtype out, or give the checkpoint's folder")
    return Backend(ONNX, "the model is an ONNX export")


def require_transformers_dtype(dtype: str) -> None:
    """Raises LabError for a number format that the backend transformers does not have."""
    known = ("auto", *TORCH_TYPES, *BITSANDBYTES)
    if dtype not in known:
        what = f"the backend transformers has no number format called {dtype!r}"
        raise LabError(what, f"choose one of {', '.join(known)}")


def _why_not_onnx(source: Path | None, device: str, dtype: str, adapted: bool) -> str:
    if adapted:
        return "an adapter is run by transformers and peft"
    if dtype in BITSANDBYTES and dtype not in PRECISIONS:
        return f"{dtype} is a format of bitsandbytes, which runs through transformers"
    if device != "cpu":
        return f"onnxruntime runs on the CPU here, and the device is {device}"
    if dtype not in ("auto", *PRECISIONS):
        return f"an ONNX export has the number format {', '.join(PRECISIONS)}, and {dtype} is asked for"
    if source is None:
        return "only a checkpoint in a local folder is exported to ONNX"
    return why_not_exportable(source) if builder_installed() else "onnxruntime-genai is not installed"


def _remedy() -> str:
    return "use --backend transformers" if builder_installed() else f"install it: {INSTALL}"
