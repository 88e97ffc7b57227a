"""The evidence pack: a folder of artifacts and the manifest that names each one.

Every write goes to a temporary file beside its target and is renamed over it, so a killed run leaves either the old
file or the new one. The manifest is rewritten after each artifact: what it lists is always on the disk.
"""

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from labkit.errors import LabError
from labkit.layout import ROOT

MANIFEST = "manifest.json"
SCHEMA = 1


@dataclass(frozen=True)
class Entry:
    """One line of the manifest. `written` is UTC, ISO 8601 to the second; `bytes` is the file's size."""

    sha256: str
    bytes: int
    written: str
    lesson: str


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step; on any failure the old file stays as it was.

    Raises LabError when the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        raise LabError(
            f"could not write {path.name}: {error.strerror}",
            "free some space or choose a folder you may write to; what was there before is untouched",
            where=path.parent.name,
        ) from error


def json_text(value: object) -> str:
    """`value` as the JSON that packs hold: indented, UTF-8, NaN refused (it is not JSON)."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def csv_text(rows: Iterable[Mapping], columns: Sequence[str]) -> str:
    """`rows` as CSV with exactly `columns`; an unknown key in a row is an error, a missing one an empty field."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def read_json(path: Path) -> dict:
    """The JSON object in `path`. Raises LabError for a missing file, bad JSON, NaN, or anything but an object."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise LabError(f"{path.name} is missing", "run the step that writes it", where=path.parent.name) from None
    except (OSError, ValueError, RecursionError) as error:
        raise LabError(f"{path.name} is not readable JSON: {error}", "run the step that writes it again") from None
    if not isinstance(value, dict):
        raise LabError(f"{path.name} does not hold a JSON object", "run the step that writes it again")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of `path`, every field text. Raises LabError for a missing, ragged or undecodable file."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
    except FileNotFoundError:
        raise LabError(f"{path.name} is missing", "run the step that writes it", where=path.parent.name) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LabError(f"{path.name} is not readable CSV: {error}", "save it as UTF-8 CSV") from None
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise LabError(f"{path.name} row {number} has not as many fields as the header", "mend that row")
    return rows


def finite(text: object) -> float | None:
    """`text` as a finite float, or None: the one rule by which a pack's numbers are read."""
    try:
        number = float(text)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def git_commit() -> str:
    """The workbook's commit, with '+changes' when its files differ from it; 'unknown' outside a checkout."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


class Pack:
    """A pack opened for writing. Opening creates the folder and the manifest when they are not there yet.

    Raises LabError when the folder already holds a pack of another route: one pack, one route.
    """

    def __init__(self, folder: Path, route: str):
        self.folder = Path(folder)
        self.route = route
        found = self.folder / MANIFEST
        if not found.exists():
            self._save({})
        elif (held := read_manifest(self.folder)["route"]) != route:
            raise LabError(
                f"this pack was made on the route {held}, not {route}",
                f"choose another folder with --evidence, or run with --route {held}",
                where=self.folder.name,
            )

    def path(self, name: str) -> Path:
        return self.folder / name

    def write_text(self, name: str, text: str, lesson: str) -> Path:
        write_atomically(self.path(name), text.encode("utf-8"))
        return self.record(name, lesson)

    def write_json(self, name: str, value: object, lesson: str) -> Path:
        return self.write_text(name, json_text(value), lesson)

    def write_csv(self, name: str, rows: Iterable[Mapping], columns: Sequence[str], lesson: str) -> Path:
        return self.write_text(name, csv_text(rows, columns), lesson)

    def record(self, name: str, lesson: str) -> Path:
        """Enter a file, or every file below a folder, that is already in the pack into the manifest."""
        target = self.path(name)
        files = sorted(p for p in target.rglob("*") if p.is_file()) if target.is_dir() else [target]
        entries = {
            name: entry for name, entry in read_manifest(self.folder)["files"].items() if self.path(name).is_file()
        }
        for file in files:
            entry = Entry(sha256_of(file), file.stat().st_size, utc_now(), lesson)
            entries[file.relative_to(self.folder).as_posix()] = asdict(entry)
        self._save(entries)
        return target

    def take(self, files: Iterable[tuple[str, bytes, Entry]]) -> None:
        """Enter files of another copy of this pack with the entries that they have there."""
        entries = dict(read_manifest(self.folder)["files"])
        for name, content, entry in files:
            write_atomically(self.path(name), content)
            entries[name] = asdict(entry)
        self._save(entries)

    def _save(self, entries: dict[str, dict]) -> None:
        manifest = {
            "schema": SCHEMA,
            "route": self.route,
            "git_commit": git_commit(),
            "files": dict(sorted(entries.items())),
        }
        write_atomically(self.folder / MANIFEST, json_text(manifest).encode("utf-8"))


def read_manifest(folder: Path) -> dict:
    """The manifest of the pack in `folder`, its shape checked. Raises LabError when there is none or it is broken."""
    manifest = read_json(Path(folder) / MANIFEST)
    files = manifest.get("files")
    if manifest.get("schema") != SCHEMA or not isinstance(manifest.get("route"), str) or not isinstance(files, dict):
        raise LabError("manifest.json is not a manifest that this version knows", "run `labkit run` to make it anew")
    wanted = {"sha256": str, "bytes": int, "written": str, "lesson": str}
    for name, entry in files.items():
        if not isinstance(entry, dict) or any(not isinstance(entry.get(key), kind) for key, kind in wanted.items()):
            raise LabError(f"manifest.json has a broken entry for {name}", "run the step that writes that file again")
    return manifest
