"""The evidence pack: a folder of artifacts and the manifest that names each one.

Every write goes to a temporary file beside its target and is renamed over it, so a killed run leaves either the old
file or the new one. An artifact leaves the manifest before it is replaced and enters it again afterwards: a run that is
killed in between leaves a file that nothing vouches for, which is "not yet" and never a contradiction.
"""

import codecs
import contextlib
import csv
import hashlib
import io
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from labkit.commit import git_commit
from labkit.errors import LabError
from labkit.redaction import TEXT_SUFFIXES, redact

MANIFEST = "manifest.json"
SCHEMA = 1
FORMS = frozenset(  # what a person may write in other words; what was measured stands elsewhere
    {
        "README.md",
        "colab_notes.md",
        "compute_route.md",
        "gpu_plan.md",
        "model_decision.md",
        "model_runtime_decision.json",
        "open_llm_runbook.json",
        "open_weight_route.json",
    }
)
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet runs a cell that begins with one of these
LEFTOVER_SECONDS = 3600.0  # after which a temporary file belongs to a write that was killed


@dataclass(frozen=True)
class Entry:
    """One line of the manifest. `written` is UTC, ISO 8601 to the second; `bytes` is the file's size.

    `redacted` counts what was taken out of the file before it was written, by kind; the line has it only where
    something was.
    """

    sha256: str
    bytes: int
    written: str
    lesson: str
    redacted: Mapping[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict:
        return {key: value for key, value in asdict(self).items() if value != {}}


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def same_text(path: Path, sha256: str) -> bool:
    """Whether a text file says what was hashed: git changes line ends, and a spreadsheet quotes as well."""
    if path.suffix.lower() not in TEXT_SUFFIXES:
        return False
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    texts = [content.replace(b"\r\n", b"\n")]
    if path.suffix.lower() == ".csv":
        with contextlib.suppress(LabError):
            rows = read_csv(path)
            texts.append(csv_text(rows, list(rows[0])).encode() if rows else b"")
    return sha256 in {hashlib.sha256(text).hexdigest() for text in texts}


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
    plain = csv.DictWriter(buffer, columns, lineterminator="\n")
    quoted = csv.DictWriter(buffer, columns, lineterminator="\n", quoting=csv.QUOTE_ALL)
    plain.writeheader()
    for row in rows:  # before Python 3.13 the writer leaves a lone carriage return bare, and readers end the row there
        (quoted if any("\r" in str(cell) for cell in row.values()) else plain).writerow(row)
    return buffer.getvalue()


def spreadsheet_safe(cell: object) -> object:
    """`cell` so that no spreadsheet takes it for a formula: text that begins with one of FORMULA gets an apostrophe.

    Numbers stay numbers, negative ones too. See https://owasp.org/www-community/attacks/CSV_Injection (2026-11-27).
    """
    risky = isinstance(cell, str) and cell.lstrip(" ").startswith(FORMULA)
    return f"'{cell}" if risky and finite(cell) is None else cell


def read_json(path: Path) -> dict:
    """The JSON object in `path`. Raises LabError for a missing file, bad JSON, NaN, a key that stands twice, or
    anything but an object."""
    try:
        value = json.loads(
            Path(path).read_text(encoding="utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique_keys
        )
    except FileNotFoundError:
        raise LabError(f"{path.name} is missing", "run the step that writes it", where=path.parent.name) from None
    except (OSError, ValueError, RecursionError) as error:
        raise LabError(f"{path.name} is not readable JSON: {error}", "run the step that writes it again") from None
    if not isinstance(value, dict):
        raise LabError(f"{path.name} does not hold a JSON object", "run the step that writes it again")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _unique_keys(pairs: list[tuple[str, object]]) -> dict:
    """JSON leaves open which of two equal keys counts, so two programs may read two facts: neither is taken."""
    held = dict(pairs)
    if len(held) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return held


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of `path`, every field text. Raises LabError for a missing, ragged or undecodable file."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            names, rows = reader.fieldnames or (), list(reader)
    except FileNotFoundError:
        raise LabError(f"{path.name} is missing", "run the step that writes it", where=path.parent.name) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LabError(f"{path.name} is not readable CSV: {error}", "save it as UTF-8 CSV") from None
    if len(set(names)) < len(names):
        raise LabError(f"{path.name} has a column twice", "leave one of the two")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise LabError(f"{path.name} row {number} has not as many fields as the header", "mend that row")
    return rows


def finite(text: object) -> float | None:
    """`text` as a finite float, or None: the one rule by which a pack's numbers are read.

    Python's float also takes full-width digits and `1_000`; no other program that reads a pack does.
    """
    if isinstance(text, str) and (not text.isascii() or "_" in text):
        return None
    try:
        number = float(text)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


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
            return
        self._sweep()
        if (held := read_manifest(self.folder)["route"]) != route:
            raise LabError(
                f"this pack was made on the route {held}, not {route}",
                f"choose another folder with --evidence, or run with --route {held}",
                where=self.folder.name,
            )

    def path(self, name: str) -> Path:
        return self.folder / name

    def write_text(self, name: str, text: str, lesson: str) -> Path:
        """Write and record a text, without the secrets, home folders and host names that were in it."""
        clean = redact(name, text.encode("utf-8"))
        with self.replacing(name):
            write_atomically(self.path(name), clean.content)
            self._enter({name: _entry(self.path(name), lesson, clean.found)})
        return self.path(name)

    def write_json(self, name: str, value: object, lesson: str) -> Path:
        return self.write_text(name, json_text(value), lesson)

    def write_csv(self, name: str, rows: Iterable[Mapping], columns: Sequence[str], lesson: str) -> Path:
        return self.write_text(name, csv_text(rows, columns), lesson)

    def record(self, name: str, lesson: str) -> Path:
        """Enter a file, or every file below a folder, that is already in the pack into the manifest.

        Secrets are taken out of it first. Hidden files are no evidence and stay out.
        """
        target = self.path(name)
        files = sorted(p for p in target.rglob("*") if p.is_file()) if target.is_dir() else [target]
        shown = [file for file in files if not any(p.startswith(".") for p in file.relative_to(self.folder).parts)]
        self._enter({file.relative_to(self.folder).as_posix(): _entry(file, lesson, _clean(file)) for file in shown})
        return target

    def record_form(self, name: str) -> Path:
        """Enter one of FORMS again, under its lesson, after a person has written it in other words.

        Raises LabError for a file that a command writes from what it measured, and for one that no lesson has left.
        """
        if name not in FORMS:
            what = f"{name} is no form that you may write in your own words"
            raise LabError(what, f"run its lesson again; the forms are {', '.join(sorted(FORMS))}")
        entry = read_manifest(self.folder)["files"].get(name)
        if entry is None or not self.path(name).is_file():
            raise LabError(f"no lesson has left {name} in this pack", "run its lesson first", where=self.folder.name)
        return self.record(name, entry["lesson"])

    @contextlib.contextmanager
    def replacing(self, *names: str) -> Iterator[None]:
        """Files, and folders with all that is in them, that the body writes anew and records, as one step.

        They leave the manifest first. Whatever ends the body, those that it left as they were are entered again; a
        killed process enters nothing, so that old and new files of one group are never both vouched for.
        """
        entries = read_manifest(self.folder)["files"]
        inside = tuple(f"{name.rstrip('/')}/" for name in names)
        gone = {name: entry for name, entry in entries.items() if name in names or name.startswith(inside)}
        if gone:
            self._save({name: entry for name, entry in entries.items() if name not in gone})
        try:
            yield
        finally:
            self._restore(gone)

    def _restore(self, gone: dict[str, dict]) -> None:
        """Enter those of `gone` again that nobody has recorded since and that are still what they were."""
        entries = read_manifest(self.folder)["files"]
        kept = {
            name: entry
            for name, entry in gone.items()
            if name not in entries and self.path(name).is_file() and sha256_of(self.path(name)) == entry["sha256"]
        }
        if kept:
            self._save(entries | kept)

    def _enter(self, found: Mapping[str, Entry]) -> None:
        for name, entry in found.items():
            if entry.redacted:
                counts = ", ".join(f"{count} {kind}" for kind, count in entry.redacted.items())
                print(f"taken out of {name} before it was recorded: {counts}", file=sys.stderr)
        held = read_manifest(self.folder)["files"]
        kept = {name: entry for name, entry in held.items() if self.path(name).is_file()}
        self._save(kept | {name: entry.as_dict() for name, entry in found.items()})

    def take(self, files: Iterable[tuple[str, bytes, Entry]]) -> None:
        """Enter files of another copy of this pack with the entries that they have there."""
        entries = dict(read_manifest(self.folder)["files"])
        for name, content, entry in files:
            write_atomically(self.path(name), content)
            entries[name] = entry.as_dict()
        self._save(entries)

    def _save(self, entries: dict[str, dict]) -> None:
        manifest = {
            "schema": SCHEMA,
            "route": self.route,
            "git_commit": git_commit(),
            "files": dict(sorted(entries.items())),
        }
        write_atomically(self.folder / MANIFEST, json_text(manifest).encode("utf-8"))

    def _sweep(self) -> None:
        """Remove the temporary files of writes that were killed long ago."""
        for path in self.folder.rglob(".*.????????"):
            with contextlib.suppress(OSError):
                if path.is_file() and time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
                    path.unlink()


@contextlib.contextmanager
def recorded(path: Path, lesson: str) -> Iterator[None]:
    """A file or folder that the body writes: where it lies in a pack, it is entered there, as one step.

    For commands that write wherever they are told to. Elsewhere it does nothing.
    """
    path = Path(path).resolve()
    folder = next((parent for parent in path.parents if (parent / MANIFEST).is_file()), None)
    pack = None
    with contextlib.suppress(LabError):  # a manifest of something else
        pack = Pack(folder, read_manifest(folder)["route"]) if folder else None
    if pack is None:
        yield
        return
    name = path.relative_to(folder).as_posix()
    with pack.replacing(name):
        yield
        pack.record(name, lesson)


def _entry(path: Path, lesson: str, redacted: Mapping[str, int]) -> Entry:
    return Entry(sha256_of(path), path.stat().st_size, utc_now(), lesson, redacted)


def _clean(path: Path) -> Mapping[str, int]:
    """Take secrets out of a file that somebody else wrote into the pack; returns the count of each kind."""
    if path.suffix.lower() not in TEXT_SUFFIXES:
        return {}
    clean = redact(path.name, path.read_bytes())
    if clean.found:
        write_atomically(path, clean.content)
    return clean.found


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
