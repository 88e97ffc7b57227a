"""Where the workbook's folders are: one place, so that no other module builds a path of its own."""

import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
NOTEBOOKS = ROOT / "notebooks"
ROUTES = NOTEBOOKS / "routes"
MODELS = DATA / "models"
EMBEDDED = "mini-instruct"  # the model in MODELS, which stands where a hub's would online
REFERENCE = ROOT / "evidence" / "reference"  # one pack for each route that this project has really run
STATE = ROOT / ".labkit"  # what a running server leaves for `labkit stop`; ignored by git


def evidence_folder(route: str) -> Path:
    """The pack's folder for `route`: LABKIT_EVIDENCE where it is set (tests, instructors), else evidence/<route>."""
    chosen = os.environ.get("LABKIT_EVIDENCE")
    return Path(chosen) if chosen else ROOT / "evidence" / route


def display_path(path: Path) -> str:
    """`path` as it may stand in an artifact: relative to the workbook, else only its name, never a home folder."""
    path = Path(path).resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def without_paths(text: str) -> str:
    """`text` with every absolute path cut to its last name: errors go into artifacts, this machine's folders do not."""
    return re.sub(r"(?<![\w:/.])(?:[A-Za-z]:)?(?:[\\/][\w.@+~-]+)*[\\/]([\w.@+~-]+)", r"\1", text)
