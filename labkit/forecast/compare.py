"""After a run: what was forecast for each lesson, beside what it took."""

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from labkit.errors import LabError
from labkit.evidence import Pack, finite, read_json, read_manifest
from labkit.forecast.keep import FORECAST
from labkit.workbook import LESSONS
from labkit.workbook.runner import COPIES

COMPARED = "forecast_and_measured.csv"
COLUMNS = ("lesson", "forecast_minutes", "low", "high", "measured_minutes", "measured_by_forecast", "says")
ALL = "all that ran"


@dataclass(frozen=True)
class Compared:
    """One lesson, or all that ran. Minutes; None where nothing was forecast or measured."""

    lesson: str
    low: float | None
    forecast: float | None
    high: float | None
    measured: float | None

    @property
    def ratio(self) -> float | None:
        return self.measured / self.forecast if self.measured is not None and self.forecast else None

    @property
    def says(self) -> str:
        if self.measured is None:
            return "not run since the forecast"
        if self.low is None or self.high is None:
            return "no forecast"
        if self.low <= self.measured <= self.high:
            return "inside the range"
        return "longer than the range" if self.measured > self.high else "shorter than the range"

    def as_row(self) -> dict[str, str]:
        numbers = (self.forecast, self.low, self.high, self.measured, self.ratio)
        told = ("" if number is None else f"{number:.2f}" for number in numbers)
        return dict(zip(COLUMNS, (self.lesson, *told, self.says), strict=True))

    def as_line(self) -> str:
        """The numbers of the row, for the terminal: rounded once, so that the file and the line say the same."""
        row = self.as_row()
        spoken = "forecast: {forecast_minutes} minutes ({low} to {high}), measured {measured_minutes}: {says}"
        return spoken.format(**row) if self.ratio is not None else f"forecast: {self.says}"


def compare(folder: Path) -> list[Compared]:
    """A row for each lesson of the forecast in the pack `folder`, and one for all that ran since it was made.

    The time of a lesson is that of its executed copy, from the first cell to the last; one that failed has none.
    Raises LabError without a forecast, or with one that has no row for the pack's lessons.
    """
    held = read_json(Path(folder) / FORECAST)
    try:
        made, route = datetime.fromisoformat(held["written"]), _of_pack(folder, held["routes"])
        lessons = {lesson["lesson"]: lesson for lesson in route["lessons"]}
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        raise LabError(f"{FORECAST} is not a forecast: {error!r}", "run `labkit forecast --evidence PACK`") from None
    rows = [
        _row(entry.number, lessons[entry.number], measured_minutes(folder, entry.file, made))
        for entry in LESSONS
        if entry.number in lessons
    ]
    return [*rows, _together([row for row in rows if row.measured is not None])]


def _of_pack(folder: Path, routes: list[dict]) -> dict:
    name = read_manifest(folder)["route"]
    return next(route for route in routes if route["route"] == name)


def _row(number: str, lesson: dict, measured: float | None) -> Compared:
    low, expected, high = (finite(lesson.get(name)) for name in ("minutes_low", "minutes", "minutes_high"))
    return Compared(number, low, expected, high, measured)


def _together(ran: list[Compared]) -> Compared:
    def total(field: str) -> float | None:
        values = [getattr(row, field) for row in ran]
        return sum(values) if values and None not in values else None

    return Compared(ALL, *(total(field) for field in ("low", "forecast", "high", "measured")))


def measured_minutes(folder: Path, notebook: str, since: datetime) -> float | None:
    """Minutes of the executed copy, None for one that is not there, failed, or ended before `since`."""
    try:
        copy = json.loads((Path(folder) / COPIES / notebook).read_text(encoding="utf-8"))
        ran = copy["metadata"]["papermill"]
        if ran.get("exception") or datetime.fromisoformat(ran["end_time"]) < since:
            return None
        return finite(ran["duration"]) / 60
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_comparison(pack: Pack) -> list[Compared]:
    """Read forecast and copies back, and leave forecast_and_measured.csv in the pack. Raises LabError as `compare`."""
    rows = compare(pack.folder)
    pack.write_csv(COMPARED, (row.as_row() for row in rows), COLUMNS, "13.0")
    return rows


def compared_rows(pack: Pack) -> list[dict[str, str]]:
    """What 13.0 shows: `write_comparison` as rows, or one row that says why there is nothing to compare yet."""
    try:
        return [row.as_row() for row in write_comparison(pack)]
    except LabError as missing:
        return [{"lesson": ALL, "says": f"{missing.what}: run 13.1, then the other lessons"}]


def after_run(pack: Pack) -> str:
    """Forecast and measured minutes of all that ran, in one line, for the end of `labkit run`."""
    try:
        return write_comparison(pack)[-1].as_line()
    except LabError as missing:
        return f"forecast: {missing.what}"
