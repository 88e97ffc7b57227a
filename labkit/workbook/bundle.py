"""The workbook as one file to upload: notebooks, package and data, without the evidence of this machine."""

import stat
import subprocess
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from labkit.commit import RECORD, bundle_record
from labkit.errors import LabError
from labkit.layout import ROOT

FOLDERS = ("data", "labkit", "notebooks")
FILES = (
    "LICENSE",
    "LICENSE-text.md",
    "Makefile",
    "README.md",
    "environment.yml",
    "pyproject.toml",
    "requirements-colab.txt",
)
NAME, TOP = "workbook.zip", "workbook"  # everything lies in this folder of the archive
LARGEST = 40 * 10**6  # bytes; an upload of a minute or two on a home connection
UNWANTED = ("__pycache__", ".ipynb_checkpoints", "build")
BEGINNING = (1980, 1, 1, 0, 0, 0)  # the first date that zip knows: the same files give the same archive


@dataclass(frozen=True)
class Bundle:
    """`bytes` is the archive's size, `files` how many it holds."""

    path: Path
    files: int
    bytes: int


def write_bundle(out: Path = ROOT / "dist" / NAME, root: Path = ROOT, largest: int = LARGEST) -> Bundle:
    """Write the archive, with the commit it was made of. The same files of the same commit give the same bytes.

    In a git checkout only files that git knows are packed, so that nothing of your own travels by mistake; elsewhere
    all that is not hidden. Raises LabError for an archive of more than `largest` bytes, and leaves none then.
    """
    out, files = Path(out), bundled_files(root)
    part = out.with_name(f".{out.name}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for name in files:
                archive.writestr(_entry(name), (root / name).read_bytes())
            archive.writestr(_entry(RECORD), bundle_record(root, files))
        size = part.stat().st_size
        if size > largest:
            raise LabError(f"{NAME} would have {size / 1e6:.1f} MB; {_heaviest(root, files)}", "take those out of git")
        part.replace(out)
    except OSError as error:
        raise LabError(f"could not write {out.name}: {error.strerror}", "give another folder with --out") from error
    finally:
        part.unlink(missing_ok=True)
    return Bundle(out, len(files), size)


def bundled_files(root: Path = ROOT) -> list[str]:
    """The paths that go into the archive, relative to `root`, sorted."""
    names = _tracked(root)
    if names is None:
        names = [p.relative_to(root).as_posix() for folder in FOLDERS for p in (root / folder).rglob("*")]
        names += FILES
    return sorted({name for name in names if _wanted(root, name)})


def _tracked(root: Path) -> Iterable[str] | None:
    """The files that git knows, None where `root` is not the top of a checkout."""
    if not (root / ".git").exists():
        return None
    command = ["git", "ls-files", "-z", "--", *FOLDERS, *FILES]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\0")[:-1]


def _wanted(root: Path, name: str) -> bool:
    path, parts = root / name, Path(name).parts
    hidden = any(part.startswith(".") or part in UNWANTED for part in parts)
    return path.is_file() and not path.is_symlink() and not hidden and path.suffix != ".pyc"


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(f"{TOP}/{name}", BEGINNING)
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry


def _heaviest(root: Path, files: list[str]) -> str:
    sizes = sorted(((root / name).stat().st_size, name) for name in files)[-3:]
    return "the largest files are " + ", ".join(f"{name} ({size / 1e6:.1f} MB)" for size, name in reversed(sizes))
