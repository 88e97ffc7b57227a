"""Read-only access to a pack that may be unfinished, damaged or made to deceive.

Every reader raises NotYet with a sentence when the file is missing or is not what it should be, so that the checks
below it can be written as if packs were well made.
"""

import re
from collections.abc import Callable
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, TypeVar

from labkit.errors import LabError
from labkit.evidence import FORMS, MANIFEST, finite, read_csv, read_json, read_manifest, same_text, sha256_of
from labkit.routes import ROUTE_NAMES
from labkit.verification.verdicts import Contradiction, NotYet

PLACEHOLDER = "_____"
UNFILLED = {"", "?", "-", "n/a", "tbd", "todo", "unknown"}  # "none" is an answer: no GPU, no fallback
TEXT_LIMIT = 8 * 2**20  # bytes; the largest honest text in a pack is a few hundred kilobytes
JSON_LIMIT = 4 * 2**20  # bytes; a benchmark of twenty thousand requests
READ_LIMIT = 8 * 2**20  # bytes of text that are read of one pack in all, so that a verdict takes a second at most
MOST_LINES = 20_000  # of one text or table; a thousand cases asked ten times are half of it
HASH_LIMIT = 2 * 2**30  # bytes of one file that are hashed; a checkpoint is below it
MOST_ENTRIES = 5_000  # lines of a manifest that are looked at; a pack has some 70
HAND_EDITED = frozenset({"eval_cases.csv"})  # the learner's own columns live here, so its hash may change
DEFAULT_ROUTE = "local_cpu"

_TEXT_FIELD = re.compile(r"^([A-Za-z][\w .-]{0,60}?): ?(.*)$")
_MARKDOWN_FIELD = re.compile(r"^- ([A-Za-z][\w .-]{0,60}?): ?(.*)$")
_BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # what str.splitlines ends a line at
_ASKS = "your|insert|add|enter|fill|name of|todo|tbd|replace|describe|explain|write|put"
_TEMPLATE = re.compile(
    rf"(?:[\[<{{(]\s?(?:{_ASKS})\b[^\]>}})]{{0,200}}[\]>}})]|(?:{_ASKS})\b.{{0,100}}\bhere"
    r"|your (?:name|team|company|project|model|e-?mail|organi[sz]ation|role)"
    r"|fill (?:this )?in\b.{0,100}|lorem ipsum\b.*|\.{3,}|…|x{3,})\W{0,3}",
    re.I | re.S,
)
_Read = TypeVar("_Read")


def per_pack(read: Callable[["PackReader"], _Read]) -> Callable[["PackReader"], _Read]:
    """A reader that looks once at each pack, however many checks ask it: they get the same value, or the same error."""

    @wraps(read)
    def once(pack: "PackReader") -> _Read:
        return pack.once(read)

    return once


class PackReader:
    """One pack's folder, its manifest and its files. Opening reads nothing; each file is read when it is asked for."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self._root = self.folder.resolve()
        self._held: dict[object, tuple[Any, Exception | None]] = {}
        self._unread = READ_LIMIT

    @cached_property
    def manifest(self) -> dict | None:
        """The manifest, or None when there is none that can be read."""
        try:
            path = self.path(MANIFEST)
            manifest = read_manifest(self.folder) if path.stat().st_size <= TEXT_LIMIT else None
        except (LabError, Contradiction, OSError):
            return None
        return manifest if manifest is None or len(manifest["files"]) <= MOST_ENTRIES else None

    def once(self, read: Callable[["PackReader"], _Read], key: object = None) -> _Read:
        """What `read` says of this pack, read the first time and remembered, its error too."""
        key = key or read
        if key not in self._held:
            try:
                self._held[key] = (read(self), None)
            except Exception as error:
                self._held[key] = (None, error)
        value, error = self._held[key]
        if error is not None:
            raise error
        return value

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
        return self.once(lambda _: self._inside(name), ("path", name))

    def _inside(self, name: str) -> Path:
        path = self.folder / name
        if not path.resolve().is_relative_to(self._root):
            raise Contradiction(f"{name} leads out of the pack")
        return path

    def exists(self, name: str) -> bool:
        try:
            return (self.folder / name).exists()
        except OSError:
            return False

    def file(self, name: str, limit: int = TEXT_LIMIT) -> Path:
        """The path of a regular file of at most `limit` bytes that is not empty and that the manifest lists.

        A file that is not listed was not finished, or nobody has run what makes it: nothing is read from it.
        """
        path = self.path(name)
        if not path.is_file():
            raise NotYet(f"{name} is missing")
        size = path.stat().st_size
        if size == 0:
            raise NotYet(f"{name} is empty")
        if size > limit:
            raise NotYet(f"{name} has {size} bytes, more than the {limit} that are read")
        if self.manifest and name not in self.entries:
            raise NotYet(unlisted(name))
        return path

    def text(self, name: str) -> str:
        return self.once(lambda _: self._text(name), ("text", name))

    def _text(self, name: str) -> str:
        try:
            text = self._some(name).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise NotYet(f"{name} is not UTF-8 text") from None
        if sum(map(text.count, _BREAKS)) > MOST_LINES:
            raise NotYet(f"{name} has more than {MOST_LINES} lines")
        return text

    def _table(self, name: str) -> list[dict[str, str]]:
        path = self._some(name)
        data = path.read_bytes()
        if data.count(b"\n") + data.count(b"\r") > 2 * MOST_LINES:
            raise NotYet(f"{name} has more than {MOST_LINES} rows")
        return read_csv(path)

    def _some(self, name: str, limit: int = TEXT_LIMIT) -> Path:
        """A file that is about to be read whole, within what may be read of one pack in all."""
        path = self.file(name, limit)
        self._unread -= path.stat().st_size
        if self._unread < 0:
            raise NotYet(f"{name} is not read: the texts of this pack have more than {READ_LIMIT} bytes")
        return path

    def json(self, name: str) -> dict:
        return self.once(lambda _: read_json(self._some(name, JSON_LIMIT)), ("json", name))

    def rows(self, name: str, columns: tuple[str, ...]) -> list[dict[str, str]]:
        """The rows of a CSV file that has at least `columns`; extra columns are the learner's business."""
        rows = self.once(lambda _: self._table(name), ("rows", name))
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
            raise NotYet(unlisted(name) if path.exists() else f"{name} is missing")
        if not path.is_file():
            raise NotYet(f"{name} was recorded and is gone")
        if self.once(lambda _: self._same(path, self.entries[name]), ("same", name)):
            return ""
        if name in HAND_EDITED:
            return "edited after it was recorded, as this file may be"
        what = f"{name} was changed after it was recorded"
        if name in FORMS:
            raise NotYet(f"{what}: if the words are yours, enter them, and if not, run its lesson again")
        if name.endswith(".ipynb"):
            raise NotYet(f"{what}: whoever opens a notebook saves it easily")
        raise Contradiction(what)

    def _same(self, path: Path, entry: dict) -> bool:
        if (size := path.stat().st_size) > HASH_LIMIT:
            raise NotYet(f"{path.name} has {size} bytes, more than the {HASH_LIMIT} that are hashed")
        if size == entry["bytes"] and sha256_of(path) == entry["sha256"]:
            return True
        return size <= TEXT_LIMIT and same_text(path, entry["sha256"])


def unlisted(name: str) -> str:
    return f"{name} is there but {MANIFEST} does not list it"


def parse_fields(text: str, name: str, required: tuple[str, ...] = ()) -> dict[str, str]:
    """Key and value of each `- Key: value` line of a .md file, or each `key: value` line of any other.

    Raises Contradiction when a required key stands twice with different values.
    """
    field = _MARKDOWN_FIELD if name.endswith(".md") else _TEXT_FIELD
    found: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in text.splitlines():
        if match := field.match(line):
            key, value = match[1], match[2].strip()
            if key in required and key in found and found[key][0] != value:
                raise Contradiction(f"{name} says {key} twice: {found[key][0]} and {value}")
            current = found.setdefault(key, [value])
        elif line.startswith("#"):
            current = None
        elif current is not None and line.strip():
            current.append(line.strip())
    return {key: "\n".join(lines).strip() for key, lines in found.items()}


def sections(text: str) -> dict[str, str]:
    """Title and body of each `## Title` section of a Markdown text; of a title that stands twice, the first."""
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in text.splitlines():
        if line.startswith("## "):
            current = []
            found.setdefault(line[3:].strip(), current)
        else:
            current.append(line)
    return {title: "\n".join(lines) for title, lines in found.items()}


def is_filled(value: object) -> bool:
    """Whether a value says something: not null, not blank, no placeholder or template, no empty container."""
    return not unfilled(value, "")


def unfilled(value: object, name: str) -> list[str]:
    """The dotted names of the parts of `value` that say nothing."""
    if isinstance(value, dict) and value:
        return [gap for key, item in value.items() for gap in unfilled(item, f"{name}.{key}")]
    if isinstance(value, list) and value:
        return [gap for index, item in enumerate(value) for gap in unfilled(item, f"{name}[{index}]")]
    if isinstance(value, str):
        said = value.strip().strip("`*")
        blank = PLACEHOLDER in value or said.lower() in UNFILLED or bool(_TEMPLATE.fullmatch(said[:400]))
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
