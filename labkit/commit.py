"""The workbook's commit: git tells in a checkout, the record of `labkit bundle` in an unpacked bundle."""

import hashlib
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

from labkit.layout import ROOT

RECORD = "bundle.json"  # at the top of an unpacked bundle; a checkout has none
UNKNOWN = "unknown"
CHANGES = "+changes"


def git_commit(root: Path = ROOT) -> str:
    """The commit of the files in `root`, with '+changes' when they differ from it; 'unknown' outside of both."""
    try:
        record = json.loads((root / RECORD).read_bytes())
        differs = any(_sha256(root / name) != held for name, held in record["files"].items())
        return _marked(record["git_commit"], differs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return _checked_out(root)


def bundle_record(root: Path, names: Iterable[str]) -> str:
    """The record that a bundle of the files `names` in `root` carries, as JSON.

    A changed file of a checkout is marked on the commit for good, since whoever unpacks the bundle cannot see it.
    """
    files = {name: _sha256(root / name) for name in names}
    return json.dumps({"git_commit": git_commit(root), "files": files}, indent=1) + "\n"


def _checked_out(root: Path) -> str:
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return _marked(commit, bool(_git(root, "status", "--porcelain", "--untracked-files=no")))
    except (OSError, subprocess.SubprocessError):
        return UNKNOWN


def _marked(commit: str, differs: bool) -> str:
    known = commit != UNKNOWN and not commit.endswith(CHANGES)
    return commit + CHANGES if differs and known else commit


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
