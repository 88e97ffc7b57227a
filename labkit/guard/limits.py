"""What a guarded command may cost and until when it may run."""

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from labkit.errors import LabError

KILL_SECONDS = 4.0  # after the limit at the latest; a longer grace begins before the limit


@dataclass(frozen=True)
class SpendingLimits:
    """`hourly_usd` is the machine's price. A `budget_usd` of 0 sets no budget; `stop_at` (UTC) None no stop time."""

    hourly_usd: float = 0.0
    budget_usd: float = 0.0
    stop_at: datetime | None = None

    def __post_init__(self):
        for name, value in (("--hourly", self.hourly_usd), ("--budget", self.budget_usd)):
            if not 0 <= value < math.inf:
                raise LabError(f"{value} is not an amount of US dollars", f"give {name} a number of at least 0")
        if self.budget_usd and not self.hourly_usd:
            raise LabError("a budget limits nothing without a price", "give --hourly, what the machine costs an hour")
        if not self.budget_usd and self.stop_at is None:
            raise LabError("there is no limit to guard", "give --hourly and --budget, or --stop-at, or both")

    @property
    def budget_seconds(self) -> float:
        """How long the budget lasts; infinite without one."""
        return self.budget_usd / self.hourly_usd * 3600 if self.budget_usd else math.inf


def parse_stop_at(text: str, now: datetime) -> datetime:
    """`text` as UTC: HH:MM is the next time a clock of this machine shows it, a date and time stand for themselves.

    `now` has a zone. Raises LabError for a text that is no time, and for a moment that has passed.
    """
    if clock := re.fullmatch(r"(\d{1,2}):(\d{2})", text.strip()):
        return _next(int(clock[1]), int(clock[2]), now)
    try:
        moment = datetime.fromisoformat(text.strip()).astimezone(UTC)  # one without a zone is in this machine's
    except (ValueError, OverflowError):
        raise _no_time(text) from None
    if moment <= now:
        raise LabError(f"the stop time {text.strip()} has passed", "give --stop-at a time to come")
    return moment


def _next(hour: int, minute: int, now: datetime) -> datetime:
    here = now.astimezone().replace(
        tzinfo=None
    )  # added to without a zone, so that 18:30 is 18:30 on either side of DST
    try:
        moment = here.replace(hour=hour, minute=minute, second=0, microsecond=0)
    except ValueError:
        raise _no_time(f"{hour}:{minute:02}") from None
    return (moment if moment > here else moment + timedelta(days=1)).astimezone(UTC)


def _no_time(text: str) -> LabError:
    return LabError(f"{text!r} is not a time", "give --stop-at as 18:30 or as 2026-11-27T18:30+00:00")
