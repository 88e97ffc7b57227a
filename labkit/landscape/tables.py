"""Read one table of data/landscape into frozen dataclasses, and say which rows are too old to trust.

The dataclass is the schema: a field without a default must be filled in every row, a field with one may be blank
(unknown). A bad cell is an error that names the file, the row and the column, because these files are edited by hand.
"""

import csv
import math
from collections.abc import Iterable
from dataclasses import MISSING, fields
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TypeVar, get_type_hints

from labkit.errors import LabError
from labkit.layout import DATA

LANDSCAPE = DATA / "landscape"
UNKNOWN = "verify"  # how a blank field is shown: look it up before you rely on it

Row = TypeVar("Row")


def read_table(path: Path, row_type: type[Row], key: str = "") -> tuple[Row, ...]:
    """The rows of the CSV file `path`, in order. `key` names a column whose values may not repeat.

    Raises LabError for a missing file, other columns than `row_type` has, or a cell that does not fit its type.
    """
    path = Path(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header, records = reader.fieldnames or [], list(reader)
    except FileNotFoundError:
        raise LabError(f"{path.name} is missing", "restore it from the repository", where=path.parent.name) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LabError(f"{path.name} is not readable CSV: {error}", "save it as UTF-8 CSV") from None
    wanted = [field.name for field in fields(row_type)]
    if sorted(header) != sorted(wanted):
        odd = ", ".join(sorted(set(header) ^ set(wanted))) or "a column that stands there twice"
        raise LabError(f"{path.name} has missing or unknown columns: {odd}", "compare its header with the repository's")
    rows = tuple(_parse_row(record, row_type, f"{path.name} row {n}") for n, record in enumerate(records, start=2))
    if key:
        _refuse_repeats(rows, key, path.name)
    return rows


def _parse_row(record: dict, row_type: type[Row], where: str) -> Row:
    if None in record or None in record.values():
        raise LabError("a row has not as many fields as the header", "mend that row", where=where)
    kinds, values = get_type_hints(row_type), {}
    for field in fields(row_type):
        text = record[field.name].strip()
        if not text and field.default is not MISSING:
            continue
        place = f"{where}, column {field.name}"
        if not text:
            raise LabError("a required field is empty", "fill it in, with its source", where=place)
        try:
            values[field.name] = _parse_cell(text, kinds[field.name])
        except ValueError as error:
            raise LabError(f"{text!r} is not a value for this column: {error}", "mend that cell", where=place) from None
    try:
        return row_type(**values)
    except ValueError as error:
        raise LabError(f"the row contradicts itself: {error}", "mend that row", where=where) from None


def _parse_cell(text: str, kind: object) -> object:
    if kind == tuple[str, ...]:
        return tuple(part.strip() for part in text.split("|"))
    if kind in (bool, bool | None):
        if text not in ("yes", "no"):
            raise ValueError("write yes or no, or leave it blank")
        return text == "yes"
    if kind in (int, int | None):
        return _not_negative(int(text))
    if kind in (float, float | None):
        return _not_negative(float(text))
    if kind in (date, date | None):
        return date.fromisoformat(text)
    return text


def _not_negative(number: float) -> float:
    if not math.isfinite(number) or number < 0:
        raise ValueError("write a number that is not negative")
    return number


def _refuse_repeats(rows: Iterable, key: str, name: str) -> None:
    seen = set()
    for number, row in enumerate(rows, start=2):
        if (value := getattr(row, key)) in seen:
            raise LabError(f"{value!r} stands there twice", "keep one of the two", where=f"{name} row {number}")
        seen.add(value)


def today_utc() -> date:
    return datetime.now(UTC).date()


def stale(rows: Iterable[Row], today: date | None = None) -> tuple[Row, ...]:
    """The rows that are older than their table allows (`expires_days` of the row's class), or that have no date.

    A table whose `expires_days` is None never expires: a published checkpoint keeps its dimensions.
    """
    today = today or today_utc()
    return tuple(row for row in rows if _expired(row, today))


def _expired(row, today: date) -> bool:
    if row.expires_days is None:
        return False
    return row.seen is None or (today - row.seen).days > row.expires_days


def age_text(row, today: date | None = None) -> str:
    """How old a row is, for a table's last column: "12 days", "57 days, EXPIRED" or "no date, EXPIRED"."""
    today = today or today_utc()
    age = "no date" if row.seen is None else f"{max(0, (today - row.seen).days)} days"
    return f"{age}, EXPIRED" if _expired(row, today) else age


def banner(title: str, rows: Iterable, today: date | None = None) -> str:
    """One line to show above a table: a warning that names how many rows have expired, or that all are fresh."""
    rows = tuple(rows)
    old = stale(rows, today)
    if not old:
        return f"{title}: {len(rows)} row{'s' * (len(rows) != 1)}, none expired."
    days = old[0].expires_days
    return (
        f"EXPIRED - {title}: {len(old)} of {len(rows)} rows are older than {days} days or undated. Look them up again."
    )


def shown(value: object) -> str:
    """A cell for people: numbers plain, yes and no for booleans, "verify" where nothing is known."""
    if value is None or value == "":
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
