"""forecast_and_measured.csv: a forecast is made before the run, and is compared with what the copies took."""

import json

from labkit.evidence import finite
from labkit.verification import notebook_checks as notebooks
from labkit.verification import service_checks as service
from labkit.verification.reading import JSON_LIMIT, PackReader
from labkit.verification.timing_checks import made_again
from labkit.verification.verdicts import Contradiction

FORECAST, COMPARED = "forecast.json", "forecast_and_measured.csv"
_COLUMNS = ("lesson", "forecast_minutes", "low", "high", "measured_minutes", "says")
_DIGITS = 0.0051  # minutes: both are rounded to a hundredth


def check_compared(pack: PackReader) -> str:
    """The forecast's minutes are those of forecast.json, what was measured is what the executed copies took after it,
    and the words follow from the numbers."""
    rows = pack.rows(COMPARED, _COLUMNS)
    held = pack.json(FORECAST)
    route = next(route for route in held["routes"] if route["route"] == pack.route)
    lessons = {str(lesson["lesson"]): lesson for lesson in route["lessons"]}
    made = service.moment(held.get("written"), f"written in {FORECAST}")
    took = _took(pack)
    for row in rows:
        lesson, ran = lessons.get(row["lesson"]), took.get(row["lesson"])
        if lesson:
            _same(pack, row, "forecast_minutes", finite(lesson.get("minutes")), FORECAST)
        if row["measured_minutes"] and ran:
            name, minutes, ended = ran
            _same(pack, row, "measured_minutes", minutes, name)
            if ended < made:
                raise Contradiction(f"{COMPARED} compares {row['lesson']} with a forecast that was made after it ran")
        _check_words(row)
    return f"{sum(bool(row['measured_minutes']) for row in rows)} of {len(rows)} rows measured after their forecast"


def _took(pack: PackReader) -> dict[str, tuple[str, float, object]]:
    """Lesson to (name, minutes, end) of its executed copy, where the pack has it."""
    found = {}
    for name in pack.entries:
        if (match := notebooks.NAME.fullmatch(name)) and pack.exists(name):
            ran = json.loads(pack.file(name, JSON_LIMIT).read_bytes()).get("metadata", {}).get("papermill") or {}
            if (seconds := finite(ran.get("duration"))) is not None:
                found[f"13.{match[1]}"] = (
                    name,
                    seconds / 60,
                    service.moment(ran.get("end_time"), f"the end of {name}"),
                )
    return found


def _same(pack: PackReader, row: dict[str, str], key: str, known: float | None, name: str) -> None:
    said = finite(row[key])
    if said is not None and known is not None and abs(said - known) > _DIGITS:
        made_again(pack, name, COMPARED)
        raise Contradiction(f"{COMPARED} says {key} {said:g} of {row['lesson'][:20]}, {name} says {known:.2f}")


def _check_words(row: dict[str, str]) -> None:
    low, took, high = (finite(row[key]) for key in ("low", "measured_minutes", "high"))
    if None in (low, took, high):
        return
    inside = low - _DIGITS <= took <= high + _DIGITS
    surely = low + _DIGITS < took < high - _DIGITS
    if (row["says"].startswith("inside") and not inside) or (not row["says"].startswith("inside") and surely):
        raise Contradiction(f"{COMPARED} calls {took:g} minutes {row['says'][:40]!r}, the range is {low:g} to {high:g}")
