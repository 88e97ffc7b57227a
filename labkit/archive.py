"""Strangers' archives: what is in them is written below one folder, within limits, or nothing is.

zip, tar, tar.gz, tar.bz2 and tar.xz are known by their first bytes, not by their names. Only plain files and folders
are taken out: a link, a device or a name that leads elsewhere refuses the whole archive, and the error names the entry.
"""

import bz2
import io
import lzma
import stat
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from labkit.errors import LabError

CHUNK = 2**16
HEADER_LIMIT = 4 * 2**20  # bytes that an archive's own lists may have: they are read whole
LZMA_MEMORY = 128 * 2**20  # bytes; xz -9 needs 65 MiB, a made-up header may ask for 4 GiB
COPY = "pack it again from a fresh copy of the pack's folder"
_FORBIDDEN = set('<>:"|?*\\')  # no file may have these on Windows, where a class may be graded too
_RESERVED = {"con", "prn", "aux", "nul", *(f"{name}{n}" for name in ("com", "lpt") for n in range(1, 10))}


@dataclass(frozen=True)
class Limits:
    """What an archive may unpack to. A pack has some 70 files and 7 MB; a checkpoint of a GPU route is larger.

    `ratio` is unpacked bytes to the archive's own; zeros reach 1,000, text 50.
    """

    total_bytes: int = 2**30
    entries: int = 5_000
    ratio: int = 200
    name_length: int = 240
    depth: int = 16


LIMITS = Limits()


@dataclass(frozen=True)
class _Entry:
    """One entry as the archive describes it. `kind` is "file", "folder", or what it is instead and refused for."""

    name: str
    kind: str
    content: IO[bytes] | None = None


def unpack(archive: Path, into: Path, limits: Limits = LIMITS) -> Path:
    """Unpack `archive` below the empty folder `into`, which is made where it is missing; returns `into`.

    Raises LabError, naming the entry, for anything but plain files and folders with names that stay below `into`, for
    two names that one file system would take for one, and beyond `limits`. What was written until then stays in
    `into`: use a temporary folder.
    """
    archive, into = Path(archive), Path(into)
    try:
        into.mkdir(parents=True, exist_ok=True)
        with open(archive, "rb") as file:
            _unpack(_entries(file, limits), into, _Budget(limits, archive.stat().st_size))
    except LabError as error:
        raise LabError(f"{archive.name} was not unpacked: {error.what}", error.next_step) from None
    except OSError as error:
        raise LabError(f"{archive.name} was not unpacked: {error.strerror or error}", "look at the disk") from None
    except Exception as error:  # zipfile and tarfile raise a dozen kinds for a damaged file
        what = f"{archive.name} was not unpacked: it is damaged ({type(error).__name__})"
        raise LabError(what, COPY) from None
    return into


class _Budget:
    """Counts what is taken out, by the bytes that really come and never by what a header says."""

    def __init__(self, limits: Limits, archive_bytes: int):
        self.limits = limits
        self._most = min(limits.total_bytes, limits.ratio * archive_bytes + 2**20)
        self._entries = self._bytes = 0

    def entry(self) -> None:
        self._entries += 1
        if self._entries > self.limits.entries:
            raise LabError(f"it has more than {self.limits.entries} entries", COPY)

    def bytes(self, count: int, name: str) -> None:
        self._bytes += count
        if self._bytes > self._most:
            what = f"with {name!r} it unpacks to more than {self._most:,} bytes, the most for an archive of this size"
            raise LabError(what, COPY)


def _unpack(entries: Iterator["_Entry"], into: Path, budget: _Budget) -> None:
    seen: set[str] = set()
    for entry in entries:
        budget.entry()
        place = safe_name(entry.name, budget.limits)
        if entry.kind not in ("file", "folder"):
            raise LabError(f"the entry {place!r} is {entry.kind}, and no plain file", COPY)
        key = unicodedata.normalize("NFC", place).casefold()
        if key in seen:
            raise LabError(f"the entry {place!r} stands in it twice", COPY)
        try:
            if entry.kind == "folder":
                (into / place).mkdir(parents=True, exist_ok=True)
            else:
                seen.add(key)
                _write(into / place, entry, budget)
        except FileExistsError:
            raise LabError(f"the entry {place!r} is both a file and a folder", COPY) from None


def _write(path: Path, entry: "_Entry", budget: _Budget) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "xb") as file:
        while block := entry.content.read(CHUNK):
            budget.bytes(len(block), entry.name)
            file.write(block)


def safe_name(name: str, limits: Limits = LIMITS) -> str:
    """`name` as a relative path with slashes that stays below where it is unpacked, on every system.

    Raises LabError naming it otherwise: absolute, with "..", a drive, a backslash, a control character, a name that
    Windows keeps for devices, not UTF-8, too long or too deep.
    """
    shown = ascii(name[:80])
    try:
        too_long = len(name.encode("utf-8")) > limits.name_length
    except UnicodeEncodeError:
        raise LabError(f"the name of the entry {shown} is not UTF-8", COPY) from None
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts:
        raise LabError(f"the entry {shown} leads out of the folder it is unpacked to", COPY)
    if not parts and name.strip("./"):
        raise LabError(f"the entry {shown} has no name", COPY)
    if too_long or len(parts) > limits.depth:
        raise LabError(f"the name of the entry {shown} is too long or too deep", COPY)
    for part in parts:
        if _FORBIDDEN & set(part) or not part.isprintable() or part[-1] in " ." or _stem(part) in _RESERVED:
            raise LabError(f"the entry {shown} has a name that not every system can have", COPY)
    return "/".join(parts)


def _stem(part: str) -> str:
    return part.split(".")[0].strip().lower()


def _entries(file: IO[bytes], limits: Limits) -> Iterator["_Entry"]:
    head = file.read(6)
    file.seek(0)
    if head[:2] == b"PK":
        yield from _zip_entries(file)
        return
    with _plain_tar(file, head, limits) as plain, tarfile.open(fileobj=_Careful(plain), mode="r:") as held:
        for member in held:
            content = held.extractfile(member) if member.isreg() else None
            yield _Entry(member.name, _tar_kind(member), content)


def _zip_entries(file: IO[bytes]) -> Iterator["_Entry"]:
    with zipfile.ZipFile(_Careful(file)) as held:
        for info in held.infolist():
            kind = _zip_kind(info)
            if kind != "file":
                yield _Entry(info.filename, kind)
                continue
            with held.open(info) as content:
                yield _Entry(info.filename, kind, content)


def _zip_kind(info: zipfile.ZipInfo) -> str:
    mode = info.external_attr >> 16  # Unix file mode, zero where another system packed it
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "encrypted, or compressed in a way that is not read"
    if mode and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_IFMT(mode) == 0):
        return "a link" if stat.S_ISLNK(mode) else "a device"
    return "folder" if info.is_dir() else "file"


def _tar_kind(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return "a link"
    if member.isdir():
        return "folder"
    if member.issparse() or not member.isreg():
        return "a sparse file" if member.issparse() else "a device"
    return "file"


@contextmanager
def _plain_tar(file: IO[bytes], head: bytes, limits: Limits) -> Iterator[IO[bytes]]:
    """The tar itself, decompressed into a temporary file where it is compressed."""
    if head[:2] == b"\x1f\x8b":
        source = _Inflated(file, lambda: zlib.decompressobj(wbits=31))
    elif head[:3] == b"BZh":
        source = _Inflated(file, bz2.BZ2Decompressor)
    elif head == b"\xfd7zXZ\x00":
        source = _Inflated(file, lambda: lzma.LZMADecompressor(memlimit=LZMA_MEMORY))
    else:
        yield file
        return
    budget = _Budget(limits, file.seek(0, io.SEEK_END))
    file.seek(0)
    with tempfile.TemporaryFile() as plain:
        for block in source:
            budget.bytes(len(block), "the whole")
            plain.write(block)
        plain.seek(0)
        yield plain


class _Inflated:
    """The decompressed blocks of a stream, CHUNK bytes of it read at a time and a bounded number given at once."""

    def __init__(self, file: IO[bytes], decompressor):
        self._file, self._decompressor = file, decompressor

    def __iter__(self) -> Iterator[bytes]:
        inflate = self._decompressor()
        bounded = {"max_length": 2**20}
        rest = b""
        while True:
            if inflate.eof:
                return
            needs = rest or getattr(inflate, "needs_input", True)
            given = rest or (self._file.read(CHUNK) if needs else b"")
            if needs and not given:
                raise LabError("it ends in the middle", COPY)
            block = inflate.decompress(given, **bounded)
            rest = getattr(inflate, "unconsumed_tail", b"")
            if block:
                yield block


class _Careful:
    """A file of which no more than HEADER_LIMIT is read at once: tarfile and zipfile read an archive's lists whole."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.seek, self.tell, self.seekable, self.close = file.seek, file.tell, file.seekable, lambda: None

    def read(self, size: int = -1) -> bytes:
        block = self._file.read(HEADER_LIMIT + 1 if size is None or size < 0 else min(size, HEADER_LIMIT + 1))
        if len(block) > HEADER_LIMIT:
            raise LabError(f"its list of entries is larger than {HEADER_LIMIT:,} bytes", COPY)
        return block
