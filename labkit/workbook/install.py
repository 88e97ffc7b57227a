"""What a hosted session lacks, installed without moving anything that it brings."""

import importlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from labkit.environment import installed_version, requirements_freeze
from labkit.errors import LabError
from labkit.layout import ROOT

VERSIONED = re.compile(r"^[\w.-]+==\d[\w.]*(?:\+[\w.]+)?\n", re.M)  # pip refuses a file with any other version in it
REQUIREMENTS = ROOT / "requirements-colab.txt"


def lines_of(path: Path) -> dict[str, str]:
    """Package to requirement, as `name==version` lines with comments give them."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return {line.partition("==")[0]: line for line in lines if line}


def install_missing(path: Path = REQUIREMENTS) -> list[str]:
    """pip-install what this session lacks of `path`; returns the names.

    A package that is there in another version stays: the session may have loaded it. Everything
    installed is given to pip as a constraint, so that pip fails rather than move a package that the running kernel may
    have loaded. Raises LabError when it fails.
    """
    wanted = {name: line for name, line in lines_of(path).items() if installed_version(name) is None}
    if not wanted:
        return []
    with tempfile.TemporaryDirectory(prefix="labkit-") as scratch:
        kept = Path(scratch) / "installed.txt"
        kept.write_text("".join(VERSIONED.findall(requirements_freeze())), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", str(kept)]
        done = subprocess.run([*command, *wanted.values()], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        what = f"could not install {' '.join(wanted.values())} beside what this session has: {said}"
        raise LabError(what, "check the session's internet access, then run this cell again")
    importlib.invalidate_caches()
    return list(wanted)
