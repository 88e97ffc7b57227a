"""Packs that travel: one archive out of a pack, and a pack out of a stranger's archive.

What leaves and what comes in is searched for secrets; what leaves can also be opened in a spreadsheet without running
anything. A file that is changed on the way keeps, in its manifest line, the sha256 that it had, and a file whose hash
was wrong before stays wrong: importing makes no forgery whole.
"""

import csv
import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from labkit.archive import safe_name, unpack
from labkit.errors import LabError
from labkit.evidence import MANIFEST, json_text, read_manifest, sha256_of, spreadsheet_safe, write_atomically
from labkit.redaction import TEXT_SUFFIXES, redact

NEUTRALISED = "spreadsheet formula"
FIRST_DAY = (1980, 1, 1, 0, 0, 0)  # the time of every entry, so that the same pack gives the same archive
SEARCHED = 64 * 2**20  # bytes; a longer text is in no pack and is refused


@dataclass(frozen=True)
class Parcel:
    """A pack that arrived, or an archive that was made. `changed` is file to what was taken out: kind to count."""

    path: Path
    files: int
    changed: dict[str, dict[str, int]]


def import_pack(archive: Path, folder: Path) -> Parcel:
    """Unpack `archive` safely, take secrets out of what it holds, and leave the pack in `folder`, which must be new.

    The pack may lie at the archive's top or in any folder of it, but there must be one. Raises LabError otherwise, for
    an archive that `unpack` refuses and for a folder that exists; then nothing is left behind.
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise LabError(f"there is no archive {archive.name}", "give the file that holds the pack")
    if folder.exists():
        raise LabError(f"{folder.name} is there already", "choose another folder with --out; nothing is overwritten")
    with _scratch(folder.parent) as scratch:
        pack = _only_pack(unpack(archive, scratch / "unpacked"), archive)
        changed = _clean_folder(pack, neutralise=False)
        files = sum(path.is_file() for path in pack.rglob("*"))
        pack.rename(folder)
    return Parcel(folder, files, changed)


def export_pack(folder: Path, archive: Path) -> Parcel:
    """Write the pack in `folder` into the zip file `archive`, which must be new.

    The copy that leaves has no secrets and no cells that a spreadsheet would run; the pack itself stays as it is.
    Hidden files stay at home. Raises LabError for a folder that is no pack and for links in it.
    """
    folder, archive = Path(folder), Path(archive)
    if not (folder / MANIFEST).is_file():
        raise LabError(
            f"there is no pack in {folder.resolve().name}", "give the folder of a pack, or make one with `labkit run`"
        )
    read_manifest(folder)
    if archive.exists():
        raise LabError(f"{archive.name} is there already", "choose another name with --out; nothing is overwritten")
    with _scratch(archive.parent) as scratch:
        copy = scratch / "copy"
        for name in _visible(folder):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, copy / name)
        changed = _clean_folder(copy, neutralise=True)
        names = sorted(path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file())
        _zip(copy, names, folder.resolve().name, scratch / "out.zip")
        (scratch / "out.zip").replace(archive)
    return Parcel(archive, len(names), changed)


@contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """A temporary folder beside the target, so that the result is moved in one step; errors of the disk are told."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix=".labkit-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except OSError as error:
        what = f"could not write into {parent.resolve().name}: {error.strerror or error}"
        raise LabError(what, "free some space, or choose a folder you may write to; nothing was changed") from None


def _only_pack(unpacked: Path, archive: Path) -> Path:
    found = [path.parent for path in sorted(unpacked.rglob(MANIFEST)) if "__MACOSX" not in path.parts]
    packs = [pack for pack in found if not any(other in pack.parents for other in found)]
    if len(packs) != 1:
        what = f"{archive.name} holds {len(packs)} packs" if packs else f"{archive.name} holds no {MANIFEST}"
        raise LabError(what, "pack the one folder that holds manifest.json, for example with `labkit export pack`")
    return packs[0]


def _visible(folder: Path) -> Iterator[str]:
    """The files of a pack by name, hidden ones left out. Raises LabError for a link: it may lead out of the pack."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in [*folders, *sorted(files)]:
            path = Path(place) / name
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink():
                raise LabError(f"{relative} is a link", "put the file itself in its place")
            if name not in folders and not name.startswith(".") and path.is_file():
                yield safe_name(relative)


def _clean_folder(pack: Path, neutralise: bool) -> dict[str, dict[str, int]]:
    """Take out of every file what must not travel, and enter the new hashes where the old ones were right."""
    changed: dict[str, dict[str, int]] = {}
    before: dict[str, str] = {}
    for path in sorted(path for path in pack.rglob("*") if path.is_file()):
        name = path.relative_to(pack).as_posix()
        content, found = _cleaned(path, name, neutralise)
        if found:
            before[name], changed[name] = sha256_of(path), found
            write_atomically(path, content)
    if changed:
        _rehash(pack, before, changed)
    return changed


def _cleaned(path: Path, name: str, neutralise: bool) -> tuple[bytes, dict[str, int]]:
    if path.suffix.lower() not in TEXT_SUFFIXES:
        return b"", {}
    if path.stat().st_size > SEARCHED:
        raise LabError(f"{name} has more than {SEARCHED:,} bytes of text", "leave it out: no lesson writes such a file")
    clean = redact(name, path.read_bytes())
    content, found = clean.content, dict(clean.found)
    if neutralise and name.lower().endswith(".csv"):
        content, count = _neutralised(content)
        found |= {NEUTRALISED: count} if count else {}
    return content, found


def _neutralised(content: bytes) -> tuple[bytes, int]:
    """A CSV file with an apostrophe before each cell that a spreadsheet would run, and how many there were.

    A file that is no CSV at all keeps its bytes: no cell of it can be told from another.
    """
    try:
        rows = list(csv.reader(io.StringIO(content.decode("utf-8"), newline="")))
    except (UnicodeDecodeError, csv.Error):
        return content, 0
    safe = [[spreadsheet_safe(cell) for cell in row] for row in rows]
    count = sum(
        old != new for row, new_row in zip(rows, safe, strict=True) for old, new in zip(row, new_row, strict=True)
    )
    if not count:
        return content, 0
    text = io.StringIO()
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(safe)
    return text.getvalue().encode("utf-8"), count


def _rehash(pack: Path, before: dict[str, str], changed: dict[str, dict[str, int]]) -> None:
    """Enter what was changed into the manifest, each line with the hash it had; one that was wrong is left wrong."""
    try:
        manifest = read_manifest(pack)
    except LabError:
        return  # a manifest that vouches for nothing has nothing to be kept right
    for name, found in changed.items():
        entry = manifest["files"].get(name)
        if entry and entry["sha256"] == before[name]:
            entry |= {"sha256": sha256_of(pack / name), "bytes": (pack / name).stat().st_size}
            entry |= {"original_sha256": entry.get("original_sha256", before[name]), "redacted": found}
    write_atomically(pack / MANIFEST, json_text(manifest).encode("utf-8"))


def _zip(folder: Path, names: list[str], top: str, target: Path) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as held:
        for name in names:
            info = zipfile.ZipInfo(f"{top}/{name}", FIRST_DAY)
            info.external_attr, info.compress_type = 0o100644 << 16, zipfile.ZIP_DEFLATED
            held.writestr(info, (folder / name).read_bytes())
