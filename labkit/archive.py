"""A stranger's archive, unpacked so that it can only make plain files and folders below one folder.

Nothing in an archive is believed: names that lead out, links and devices are refused, and size, count and ratio are
counted on the bytes that really come, not on those that the archive announces.
"""

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO

from labkit.errors import LabError

MOST_FILES = 5_000
MOST_BYTES = 2**30  # unpacked, all files together; a pack is some megabytes
MOST_RATIO = 200  # unpacked to packed; text of a training log reaches about ten
RATIO_FROM = 2**20  # bytes below which the ratio says nothing
_CHUNK = 2**16
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, LZMAError, EOFError, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class _Entry:
    """One file or folder of an archive; `kind` is empty for these two, else what it is instead."""

    name: str
    folder: bool
    kind: str
    content: IO[bytes] | None


def unpack(archive: Path, into: Path) -> Path:
    """Unpack a .zip or .tar (also .gz, .bz2, .xz) into the empty folder `into`, and return `into`.

    Raises LabError that names the entry for a link, a device, a name that leads out, an encrypted file, and when the
    archive is broken or beyond the limits of size, count or ratio.
    """
    try:
        _Unpacking(archive, into).run()
    except _BROKEN as error:
        raise _refused(archive, f"cannot be unpacked: {' '.join(str(error).split())[:120] or 'it is broken'}") from None
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise _refused(archive, f"cannot be unpacked: {what[:120]}") from None
    return into


class _Unpacking:
    """One archive on its way to the disk, with what it has used of the limits."""

    def __init__(self, archive: Path, into: Path):
        self._archive, self._into = archive, into
        self._packed = max(archive.stat().st_size, 1)
        self._files = self._bytes = 0

    def run(self) -> None:
        for entry in _entries(self._archive):
            self._files += 1
            if self._files > MOST_FILES:
                raise _refused(self._archive, f"holds more than {MOST_FILES} entries")
            target = self._target(entry)
            if entry.folder:
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                self._write(entry, target)

    def _target(self, entry: _Entry) -> Path:
        name = entry.name
        if entry.kind:
            raise _refused(self._archive, f"holds {entry.kind}: {name!r:.120}")
        path = PurePosixPath(name)
        strange = "\\" in name or "\0" in name or (path.parts and path.parts[0].endswith(":"))
        if path.is_absolute() or ".." in path.parts or strange:
            raise _refused(self._archive, f"holds an entry that leads out of it: {name!r:.120}")
        return self._into / path

    def _write(self, entry: _Entry, target: Path) -> None:
        with open(target, "xb") as file:  # "x": a second entry of the same name is refused
            while chunk := entry.content.read(_CHUNK):
                self._bytes += len(chunk)
                if self._bytes > MOST_BYTES:
                    raise _refused(
                        self._archive, f"unpacks to more than {MOST_BYTES // 2**20} MiB at {entry.name!r:.120}"
                    )
                if self._bytes > max(RATIO_FROM, MOST_RATIO * self._packed):
                    raise _refused(self._archive, f"unpacks to {MOST_RATIO} times its size at {entry.name!r:.120}")
                file.write(chunk)


def _entries(archive: Path) -> Iterator[_Entry]:
    if zipfile.is_zipfile(archive):
        return _of_zip(archive)
    if tarfile.is_tarfile(archive):
        return _of_tar(archive)
    raise _refused(archive, "is no .zip and no .tar archive")


def _of_zip(archive: Path) -> Iterator[_Entry]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
            strange = "" if plain else "a link" if kind == stat.S_IFLNK else "a device"
            if info.is_dir() or strange:
                yield _Entry(info.filename, info.is_dir(), strange, None)
            else:
                with opened.open(info) as content:
                    yield _Entry(info.filename, False, "", content)


def _of_tar(archive: Path) -> Iterator[_Entry]:
    with tarfile.open(archive) as opened:
        for info in opened:
            strange = "" if info.isreg() or info.isdir() else "a link" if info.issym() or info.islnk() else "a device"
            content = opened.extractfile(info) if info.isreg() else None
            yield _Entry(info.name, info.isdir(), strange, content)


def _refused(archive: Path, what: str) -> LabError:
    return LabError(f"the archive {what}", "pack the pack's folder again, as plain files", where=archive.name)
