"""Time on task, as far as a manifest can tell it.

The manifest holds when each file was last written. Between two writes somebody, or a program, was at work; a longer
pause was a break. What came before the first file, and earlier versions of a file, are not in it, so the minutes are a
lower bound. Nothing vouches for the times: they open a conversation and prove nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise

BREAK = timedelta(minutes=30)  # a pause of more is a break


@dataclass(frozen=True)
class Pace:
    """`first` and `last` are UTC, ISO 8601, "" where none is known; `minutes` of work between them, without breaks."""

    first: str = ""
    last: str = ""
    minutes: float | None = None


def pace(written: Iterable[str]) -> Pace:
    """The pace of a pack from the times of its manifest; a time that cannot be read or has no zone counts nothing."""
    times = sorted(moment for text in written if (moment := _moment(text)) is not None)
    if not times:
        return Pace()
    worked = sum((gap for a, b in pairwise(times) if (gap := b - a) <= BREAK), timedelta())
    return Pace(times[0].isoformat(), times[-1].isoformat(), round(worked.total_seconds() / 60, 1))


def _moment(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
        return found.astimezone(UTC) if found.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None
