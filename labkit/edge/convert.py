"""A model, with or without an adapter, as an export with its card."""

import platform
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from labkit.edge.fidelity import LIMIT, Fidelity, answers, compare_answers, require_share
from labkit.errors import LabError
from labkit.evaluation.cases import Case
from labkit.evidence import sha256_of
from labkit.export import olive, onnx
from labkit.export.card import ExportCard, Provenance, files_of, package_versions, provenance, write_card
from labkit.export.checkpoint import weights_revision
from labkit.export.onnx_folder import is_onnx_export
from labkit.generation import EMBEDDED, load_chat_model
from labkit.generation.chat_model import local_source
from labkit.layout import display_path

BUILDER = "builder"
TOOLS = (BUILDER, *olive.ROUTES)
PRECISIONS = {"int4": "int4", "int8": "int8", "fp16": "float16", "fp32": "float32"}
QUANTS = ("Q4_K_M", "Q8_0", "F16")
NEXT_FOLDER = "choose another folder with --out"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_VERSIONS = ("torch", "transformers", "peft")
Event = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """The checkpoint that is converted: `folder` holds it, merged where there is an adapter."""

    name: str
    folder: Path
    base: Provenance
    adapter: Provenance | None


@dataclass(frozen=True)
class Exported:
    """`path` is what `load_chat_model` takes: a folder for ONNX, a file for GGUF. `fidelity` is None unless checked."""

    path: Path
    card: ExportCard
    fidelity: Fidelity | None


@contextmanager
def source_of(model: str = EMBEDDED, adapter: Path | None = None) -> Iterator[Source]:
    """The checkpoint in a folder; with an adapter the two merged, in a folder that goes again.

    Raises LabError for a hub id, an export, a folder without weights or tokenizer, and an adapter that is none or of
    another base.
    """
    folder = local_source(model)
    if folder is None:
        raise LabError(
            f"{model} is not on this machine", "download it, for example with `hf download`; give its folder"
        )
    if folder.is_file() or is_onnx_export(folder):
        raise LabError(f"{folder.name} is an export already", "give the checkpoint that it was made from")
    base = provenance(display_path(folder), folder, weights_revision(folder))
    if not any((folder / file).is_file() for file in TOKENIZERS):
        raise LabError(f"{folder.name} holds no tokenizer", f"copy it beside the weights: {' or '.join(TOKENIZERS)}")
    if adapter is None:
        yield Source(folder.name, folder, base, None)
        return
    from labkit.adaptation.lora.merge import ADAPTER_FILES, merge_adapter

    with tempfile.TemporaryDirectory(prefix="labkit-merged-") as scratch:
        name = f"{folder.name}-{Path(adapter).resolve().name}"
        merged = merge_adapter(adapter, Path(scratch) / name, model)
        held = {file: sha256_of(Path(adapter) / file) for file in ADAPTER_FILES}
        own = Provenance(display_path(adapter), held["adapter_model.safetensors"][:12], held)
        yield Source(name, merged, base, own)


def export_onnx(
    source: Source, out: Path, precision: str = "int4", tool: str = BUILDER, told: Event = lambda text: None
) -> ExportCard:
    """Write `source` into the folder `out`, empty or new, as an ONNX export with its card.

    `precision` is int4, int8, fp16 or fp32; `tool` one of TOOLS. Raises LabError as the tools do.
    """
    precision = precision.lower()
    if precision not in PRECISIONS:
        raise LabError(f"there is no precision {precision!r}", f"choose {', '.join(PRECISIONS)}")
    if tool not in TOOLS:
        raise LabError(f"there is no tool {tool!r}", f"choose {', '.join(TOOLS)}")
    if why_not := onnx.why_not_exportable(source.folder):
        next_step = "give another checkpoint; `labkit export gguf` takes Llama ones with heads of any width"
        raise LabError(f"{source.name} cannot be exported to ONNX: {why_not}", next_step)
    if tool != BUILDER:
        olive.require_precision(PRECISIONS[precision])
    with _new_folder(out):
        if tool == BUILDER:
            onnx.export_onnx(source.folder, out, PRECISIONS[precision])
        else:
            if not olive.olive_ready():
                told("making an environment for Olive, once: about 260 MB")
            olive.export_with_olive(source.folder, out, PRECISIONS[precision], tool)
    versions = package_versions("onnxruntime-genai", "onnxruntime", *_VERSIONS)
    own = {f"olive environment: {name}": held for name, held in olive.installed_packages().items()}
    return _card(source, out, "onnx", precision, tool, versions | (own if tool != BUILDER else {}), f"--tool {tool}")


def export_gguf(source: Source, out: Path, quant: str = "Q4_K_M") -> ExportCard:
    """Write `source` into the folder `out`, empty or new, as one GGUF file with its card.

    `quant` is one of QUANTS. Raises LabError without llama-cpp-python (but for F16), and for another architecture.
    """
    quant = quant.upper()
    if quant not in QUANTS:
        raise LabError(f"there is no quantization {quant!r} here", f"choose {', '.join(QUANTS)}")
    try:
        from labkit.export.gguf import quantize_gguf, write_gguf
    except ModuleNotFoundError as error:
        raise LabError(f"the package {error.name} is not installed", f"`pip install {error.name}`") from None
    path = out / f"{source.name}-{quant}.gguf"
    with _new_folder(out), tempfile.TemporaryDirectory(prefix="labkit-gguf-") as scratch:
        if quant == "F16":
            write_gguf(source.folder, path, "f16")
        else:
            plain = Path(scratch) / "f32.gguf"
            write_gguf(source.folder, plain)
            quantize_gguf(plain, path, quant)
    versions = package_versions("gguf", "llama-cpp-python", *_VERSIONS)
    return _card(source, out, "gguf", quant, "labkit.export.gguf", versions, "")


def artifact_of(folder: Path) -> Path:
    """What is loaded from an export's folder: itself, or the GGUF file in it. Raises LabError without either."""
    found = local_source(str(Path(folder).resolve()))
    if found.is_dir() and not is_onnx_export(found):
        raise LabError(f"{found.name} holds no export", "make one with `labkit export onnx` or `labkit export gguf`")
    return found


def check_export(source: Source, out: Path, card: ExportCard, cases: Sequence[Case], limit: float = LIMIT) -> Exported:
    """Ask source and export the same cases, and write the outcome into the card. Raises LabError as they do."""
    require_share(limit)
    before = answers(load_chat_model(str(source.folder), "cpu", "float32"), cases)
    path = artifact_of(out)
    found = compare_answers(before, answers(load_chat_model(str(path)), cases), limit)
    card = replace(card, check=found.as_dict())
    write_card(out, card)
    return Exported(path, card, found)


@contextmanager
def _new_folder(out: Path) -> Iterator[None]:
    """The folder made, if it can be, before the work; after work that failed nothing of it is left.

    Raises LabError for a folder that is not empty, or cannot be written, and for what the file system refuses later.
    """
    name = out.resolve().name
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise LabError(f"the folder {name} is not empty", NEXT_FOLDER)
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        shutil.rmtree(out, ignore_errors=True)
        reason = error.strerror or error
        raise LabError(f"nothing can be written into the folder {name}: {reason}", NEXT_FOLDER) from error
    try:
        yield
    except BaseException as error:
        shutil.rmtree(out, ignore_errors=True)
        if isinstance(error, OSError):
            where = f" at {Path(error.filename).name}" if error.filename else ""
            what = f"the export into {name} was ended{where}: {error.strerror or error}"
            raise LabError(what, "make that file readable, or free some space, and export again") from error
        raise


def _card(
    source: Source, out: Path, kind: str, precision: str, tool: str, versions: dict[str, str], more: str
) -> ExportCard:
    """Written beside the export, without a check."""
    words = ["labkit", "export", kind, source.base.name]
    words += ["--adapter", source.adapter.name] if source.adapter else []
    words += ["--precision" if kind == "onnx" else "--quant", precision, *more.split(), "--out", "DIR"]
    versions = {"python": platform.python_version(), **versions}
    made = ExportCard(kind, precision, tool, source.base, source.adapter, shlex.join(words), versions, files_of(out))
    write_card(out, made)
    return made
