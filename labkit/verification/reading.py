"""Read-only access to a pack that may be unfinished, damaged or made to deceive.

Every reader raises NotYet with a sentence when the file is missing or is not what it should be, so that the checks
below it can be written as if packs were well made.
"""

import re
from functools import cached_property
from pathlib import Path

from labkit.errors import LabError
from labkit.evidence import MANIFEST, finite, read_csv, read_json, read_manifest, sha256_of
from labkit.routes import ROUTE_NAMES
from labkit.verification.verdicts import Contradiction, NotYet

PLACEHOLDER = "_____"
UNFILLED = {"", "?", "-", "n/a", "tbd", "todo", "unknown"}  # "none" is an answer: no GPU, no fallback
TEXT_LIMIT = 16 * 2**20  # bytes; the largest honest text in a pack is a few hundred kilobytes
HAND_EDITED = frozenset({"eval_cases.csv"})  # the learner's own columns live here, so its hash may change
DEFAULT_ROUTE = "local_cpu"

_TEXT_FIELD = re.compile(r"^([A-Za-z][\w .-]{0,60}?): ?(.*)$")
_MARKDOWN_FIELD = re.compile(r"^- ([A-Za-z][\w .-]{0,60}?): ?(.*)$")


class PackReader:
    """One pack's folder, its manifest and its files. Opening reads nothing; each file is read when it is asked for."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    @cached_property
    def manifest(self) -> dict | None:
        """The manifest, or None when there is none that can be read (`manifest_problem` says why)."""
        try:
            return read_manifest(self.folder)
        except LabError:
            return None

    @property
    def route(self) -> str:
        """The pack's route; an unreadable or unknown one is judged by local_cpu's list, the shortest."""
        route = self.manifest["route"] if self.manifest else None
        return route if route in ROUTE_NAMES else DEFAULT_ROUTE

    @property
    def entries(self) -> dict[str, dict]:
        return self.manifest["files"] if self.manifest else {}

    def written(self, name: str) -> str:
        """When `name` was recorded, as the manifest says (ISO 8601, so that times compare as text); "" for never."""
        return self.entries.get(name, {}).get("written", "")

    def path(self, name: str) -> Path:
        """Where `name` is. Raises Contradiction for a name that leads out of the pack."""
        path = self.folder / name
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise Contradiction(f"{name} leads out of the pack")
        return path

    def exists(self, name: str) -> bool:
        return (self.folder / name).exists()

    def file(self, name: str, limit: int = TEXT_LIMIT) -> Path:
        """The path of a regular file of at most `limit` bytes that is not empty."""
        path = self.path(name)
        if not path.is_file():
            raise NotYet(f"{name} is missing")
        size = path.stat().st_size
        if size == 0:
            raise NotYet(f"{name} is empty")
        if size > limit:
            raise NotYet(f"{name} has {size} bytes, more than the {limit} that are read")
        return path

    def text(self, name: str) -> str:
        try:
            return self.file(name).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise NotYet(f"{name} is not UTF-8 text") from None

    def json(self, name: str) -> dict:
        return read_json(self.file(name))

    def rows(self, name: str, columns: tuple[str, ...]) -> list[dict[str, str]]:
        """The rows of a CSV file that has at least `columns`; extra columns are the learner's business."""
        rows = read_csv(self.file(name))
        if not rows:
            raise NotYet(f"{name} has a header and no rows")
        absent = [column for column in columns if column not in rows[0]]
        if absent:
            raise NotYet(f"{name} has no column {', '.join(absent)}")
        return rows

    def fields(self, name: str, required: tuple[str, ...]) -> dict[str, str]:
        """`- Key: value` lines as a dict, `required` keys filled; lines that follow a value belong to it."""
        found = parse_fields(self.text(name), name, required)
        require_filled({key: found.get(key, "") for key in required}, name)
        return found

    def check_recorded(self, name: str) -> str:
        """That the file on the disk is the file that was recorded, by its sha256."""
        if self.manifest is None:
            raise NotYet(f"{MANIFEST} is missing or unreadable, so nothing vouches for {name}")
        path = self.path(name)
        if name not in self.entries:
            raise NotYet(f"{name} is there but {MANIFEST} does not list it" if path.exists() else f"{name} is missing")
        if not path.is_file():
            raise NotYet(f"{name} was recorded and is gone")
        if sha256_of(path) == self.entries[name]["sha256"]:
            return ""
        if name in HAND_EDITED:
            return "edited after it was recorded, as this file may be"
        raise Contradiction(f"{name} was changed after it was recorded")


def parse_fields(text: str, name: str, required: tuple[str, ...] = ()) -> dict[str, str]:
    """Key and value of each `- Key: value` line of a .md file, or each `key: value` line of any other.

    Raises Contradiction when a required key stands twice with different values.
    """
    field = _MARKDOWN_FIELD if name.endswith(".md") else _TEXT_FIELD
    found: dict[str, str] = {}
    current = None
    for line in text.splitlines():
        match = field.match(line)
        if match and (key := match[1]) in found and found[key] != match[2].strip() and key in required:
            raise Contradiction(f"{name} says {key} twice: {found[key]} and {match[2].strip()}")
        if match:
            current = match[1]
            found.setdefault(current, match[2].strip())
        elif line.startswith("#"):
            current = None
        elif current and line.strip():
            found[current] = f"{found[current]}\n{line.strip()}".strip()
    return found


def is_filled(value: object) -> bool:
    """Whether a value says something: not null, not blank, no placeholder, no empty container, at any depth."""
    return not unfilled(value, "")


def unfilled(value: object, name: str) -> list[str]:
    """The dotted names of the parts of `value` that say nothing."""
    if isinstance(value, dict) and value:
        return [gap for key, item in value.items() for gap in unfilled(item, f"{name}.{key}")]
    if isinstance(value, list) and value:
        return [gap for index, item in enumerate(value) for gap in unfilled(item, f"{name}[{index}]")]
    if isinstance(value, str):
        blank = PLACEHOLDER in value or value.strip().strip("`*").lower() in UNFILLED
    else:
        blank = value is None or value in ({}, [])
    return [name] if blank else []


def require_filled(values: dict[str, object], where: str) -> None:
    """Raise NotYet naming every part of `values` that is missing, blank or still a placeholder."""
    gaps = [gap for key, value in values.items() for gap in unfilled(value, key)]
    if gaps:
        raise NotYet(f"{where}: not filled: {', '.join(gaps)}")


def require_keys(value: object, keys: tuple[str, ...], where: str) -> dict:
    """`value` as a dict whose `keys` are all there and filled."""
    if not isinstance(value, dict):
        raise NotYet(f"{where} is not an object")
    require_filled({key: value.get(key) for key in keys}, where)
    return value


def number(value: object, what: str, minimum: float = 0.0) -> float:
    """`value` as a finite number of at least `minimum`. A boolean is not a number here."""
    found = None if isinstance(value, bool) else finite(value)
    if found is None or found < minimum:
        shown = str(value)[:40]
        raise NotYet(f"{what} is {shown!r}, not a finite number of at least {minimum:g}")
    return found
