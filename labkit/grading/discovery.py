"""What was handed in: each folder or archive directly below the class's folder is one submission.

A learning platform exports such folders, one a person, with the archive or the pack somewhere inside. Links are never
followed: the folder may have been unpacked from strangers' archives.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabError
from labkit.evidence import MANIFEST
from labkit.verification.verdicts import printable

READABLE = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
ARCHIVES = (*READABLE, ".gz", ".7z", ".rar", ".xz", ".bz2", ".zst")
DEPTH = 8  # folders below a submission in which a pack is looked for
MOST_PACKS = 10  # of one submission


@dataclass(frozen=True)
class Submission:
    """One entry of the class's folder. `name` is fit to be printed."""

    name: str
    path: Path


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVES)


def find_submissions(folder: Path) -> tuple[tuple[Submission, ...], tuple[str, ...]]:
    """(submissions by name, names of loose files that are none). A folder that is itself a pack is one submission.

    Raises LabError when there is no such folder, or nothing in it that could be graded.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise LabError(f"there is no folder {folder.name}", "give the folder that holds the packs of the class")
    if (folder / MANIFEST).is_file():
        return (Submission(printable(folder.resolve().name), folder),), ()
    entries = sorted((entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=lambda e: e.name)
    handed_in = [entry for entry in entries if entry.is_dir() or entry.is_symlink() or is_archive(entry)]
    if not handed_in:
        raise LabError(f"{folder.name} holds no folder and no archive", "put each person's pack or archive into it")
    loose = tuple(printable(entry.name) for entry in entries if entry not in handed_in)
    return tuple(Submission(printable(entry.name), entry) for entry in handed_in), loose


def packs_below(folder: Path) -> list[Path]:
    """The packs in `folder`: it itself, or each folder below it that has a manifest.

    The workbook's own reference packs, which a person hands in with the whole workbook, are not theirs.
    """
    found = [place for place in _folders(folder) if (place / MANIFEST).is_file()]
    return [place for place in found if place.parts[-3:-1] != ("evidence", "reference")][:MOST_PACKS]


def archives_below(folder: Path) -> list[Path]:
    """The archives in `folder` or below, in the order of their names."""
    files = (path for place in _folders(folder) for path in sorted(place.iterdir()))
    return [path for path in files if is_archive(path) and path.is_file() and not path.is_symlink()][:MOST_PACKS]


def _folders(folder: Path) -> Iterator[Path]:
    """`folder` and those below it, parents first; nothing below a pack, no hidden folder and no link."""
    for place, names, files in os.walk(folder):
        here = Path(place)
        yield here
        deep = len(here.relative_to(folder).parts) >= DEPTH
        below = [] if deep or MANIFEST in files else sorted(name for name in names if not name.startswith("."))
        names[:] = [name for name in below if not (here / name).is_symlink() and name != "__MACOSX"]
