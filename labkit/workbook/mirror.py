"""A second copy of a pack, for machines that are taken away: a folder in Drive, or a zip file to download.

The pack on the session's own disk is always written first, and the copy follows. Two copies are brought together file
by file: the entry that was written later wins, so that a pack which went on in another session is not set back.
"""

import io
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol

from labkit.errors import LabError
from labkit.evidence import MANIFEST, Entry, Pack, read_manifest, sha256_of, write_atomically

STORED = {".pt", ".safetensors", ".png", ".zip"}  # what no zip makes smaller


class Copy(Protocol):
    """Where a second copy of a pack lies. `where` is how a learner knows it."""

    where: str

    def entries(self) -> dict[str, Entry]:
        """What its manifest names; nothing while there is no copy. Raises LabError for one that is damaged."""

    def content(self, name: str) -> bytes: ...

    def write(self, folder: Path, names: Mapping[str, str]) -> None:
        """Hold the files `names` (name to sha256) of `folder`, and its manifest last. Raises OSError or LabError."""


@dataclass
class FolderCopy:
    """A folder, such as one in a mounted Drive. `route` is the pack's; the folder of another route is an error."""

    folder: Path
    where: str
    route: str
    _written: dict[str, str] = field(default_factory=dict)  # sha256 of what this object wrote: Drive is slow to read

    def entries(self) -> dict[str, Entry]:
        return _entries(read_manifest(self.folder), self.route) if (self.folder / MANIFEST).is_file() else {}

    def content(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def write(self, folder: Path, names: Mapping[str, str]) -> None:
        for name, digest in names.items():
            target = self.folder / name
            there = self._written.get(name) or (sha256_of(target) if target.is_file() else "")
            if there != digest or not target.is_file():
                write_atomically(target, (folder / name).read_bytes())
            self._written[name] = digest
        write_atomically(self.folder / MANIFEST, (folder / MANIFEST).read_bytes())


@dataclass
class ZipCopy:
    """One zip file. What is read from it must be named in its manifest, so that nothing lands beside the pack."""

    path: Path
    where: str
    route: str

    def entries(self) -> dict[str, Entry]:
        if not self.path.is_file():
            return {}
        with self._open() as archive:
            if MANIFEST not in archive.namelist():
                raise LabError(f"{self.path.name} holds no {MANIFEST}", "give the zip file that a session saved")
            manifest = _manifest_of(archive.read(MANIFEST), self.path.name)
        return _entries(manifest, self.route)

    def content(self, name: str) -> bytes:
        with self._open() as archive:
            return archive.read(name)

    def write(self, folder: Path, names: Mapping[str, str]) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name in (*names, MANIFEST):
                method = zipfile.ZIP_STORED if Path(name).suffix in STORED else zipfile.ZIP_DEFLATED
                archive.write(folder / name, name, method)
        write_atomically(self.path, buffer.getvalue())

    def _open(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)
        except (OSError, zipfile.BadZipFile) as error:
            raise LabError(f"{self.path.name} is no zip file: {error}", "upload it again, or remove it") from None


def _manifest_of(text: bytes, name: str) -> dict:
    """The manifest in `text`, its shape checked as that of a folder is."""
    with tempfile.TemporaryDirectory(prefix="labkit-") as scratch:
        (Path(scratch) / MANIFEST).write_bytes(text)
        try:
            return read_manifest(Path(scratch))
        except LabError as error:
            raise LabError(f"{name}: {error.what}", "give the zip file that a session saved") from None


def _entries(manifest: dict, route: str) -> dict[str, Entry]:
    """Raises LabError for the pack of another route and for a name that leads out of the pack."""
    if manifest["route"] != route:
        what = f"the saved pack was made on the route {manifest['route']}, not {route}"
        raise LabError(what, "choose that route, or move the saved pack away")
    for name in manifest["files"]:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or name == MANIFEST:
            raise LabError(f"the saved pack names a file outside of itself: {name!r}", "do not use it")
    return {name: Entry(**entry) for name, entry in manifest["files"].items()}


def restore(pack: Pack, copy: Copy, known: Mapping[str, Entry] | None = None) -> list[str]:
    """Take into `pack` what `copy` has and the pack has not, or has in an older state; returns the names.

    What `known` names in the same state was in the copy before: where the pack lacks it, it was removed on purpose.
    Files are taken as they are: one that was edited by hand is for the verifier to judge. Raises LabError for a copy
    that is damaged.
    """
    held = {name: Entry(**entry) for name, entry in read_manifest(pack.folder)["files"].items()}
    found = copy.entries()
    names = [
        name
        for name, entry in found.items()
        if (known or {}).get(name) != entry and not _as_new(held.get(name), entry, pack.path(name))
    ]
    try:
        pack.take((name, copy.content(name), found[name]) for name in names)
    except (KeyError, OSError, zipfile.BadZipFile) as error:
        raise LabError(f"a file of the saved pack is missing or damaged: {error}", "move the saved pack away") from None
    return names


def _as_new(mine: Entry | None, theirs: Entry, path: Path) -> bool:
    return mine is not None and path.is_file() and (mine.sha256 == theirs.sha256 or mine.written >= theirs.written)


def save(pack: Pack, copy: Copy, known: Mapping[str, Entry] | None = None) -> dict[str, Entry]:
    """Bring `copy` up to the pack, after the pack has taken what is newer there; returns what the copy then holds.

    Files are copied as they are on the disk, so notes that were typed into a file by hand are saved too. `known` is
    what the last call returned.
    """
    restore(pack, copy, known)
    entries = {name: Entry(**entry) for name, entry in read_manifest(pack.folder)["files"].items()}
    names = [name for name in entries if pack.path(name).is_file()]
    copy.write(pack.folder, {name: sha256_of(pack.path(name)) for name in names})
    return entries
