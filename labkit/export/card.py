"""The card of an export: from which weights it was made, with what, and whether its answers are still those."""

import importlib.metadata
from dataclasses import asdict, dataclass, field
from pathlib import Path

from labkit.errors import LabError
from labkit.evidence import json_text, read_json, sha256_of, write_atomically
from labkit.export.checkpoint import weight_files

CARD = "export.json"
_NEEDED = ("kind", "precision", "tool", "source", "adapter", "files", "versions", "command", "check")


@dataclass(frozen=True)
class Provenance:
    """Something that an export was made of. `files` are its weights, name to sha256."""

    name: str
    revision: str
    files: dict[str, str]


@dataclass(frozen=True)
class ExportCard:
    """What lies beside an export.

    `files` are all of its files, name to bytes and sha256. `adapter` was merged into `source` before; None without.
    `check` is what a comparison with the source's answers found (labkit.edge.fidelity), None where none was made.
    No time stands in it, so that the same command leaves the same card.
    """

    kind: str
    precision: str
    tool: str
    source: Provenance
    adapter: Provenance | None
    command: str
    versions: dict[str, str]
    files: dict[str, dict] = field(default_factory=dict)
    check: dict | None = None

    @property
    def bytes(self) -> int:
        return sum(file["bytes"] for file in self.files.values())


def provenance(name: str, folder: Path, revision: str) -> Provenance:
    """Raises LabError where the folder holds no weights."""
    files = weight_files(folder)
    if not files:
        raise LabError(f"{folder.name} holds no weights", "give a folder with safetensors")
    return Provenance(name, revision, {file.name: sha256_of(file) for file in files})


def files_of(folder: Path) -> dict[str, dict]:
    """Bytes and sha256 of each file below `folder`, except the card."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CARD)
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in found
    }


def package_versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def write_card(folder: Path, card: ExportCard) -> None:
    write_atomically(folder / CARD, json_text(asdict(card)).encode())


def read_export_card(folder: Path) -> ExportCard:
    """The card in an export's folder. Raises LabError for a folder without one, and for a file that is no card."""
    if not (Path(folder) / CARD).is_file():
        what = f"{Path(folder).name} holds no export: {CARD} is missing"
        raise LabError(what, "make one with `labkit export onnx` or `labkit export gguf`")
    held = read_json(Path(folder) / CARD)
    if missing := [name for name in _NEEDED if name not in held]:
        raise LabError(
            f"{CARD} of {Path(folder).name} lacks {', '.join(missing)}", "make it again with `labkit export`"
        )
    try:
        source, adapter = Provenance(**held["source"]), held["adapter"] and Provenance(**held["adapter"])
        return ExportCard(**{**{name: held[name] for name in _NEEDED}, "source": source, "adapter": adapter})
    except TypeError:
        raise LabError(f"{CARD} of {Path(folder).name} is no card", "make it again with `labkit export`") from None


def changed_files(folder: Path, card: ExportCard) -> list[str]:
    """The names of the card's files that are changed or missing; what was added beside them is not asked."""
    now = files_of(folder)
    return sorted(name for name, held in card.files.items() if now.get(name) != held)
