"""Time and money that a guarded command has used, by two clocks that are never confused.

The budget is counted by a steady clock, which nobody can set and which goes on while the machine sleeps: a provider
bills that too. The stop time is a promise about the clock on the wall, but a clock that is set back must not make a run
longer. So the stop comes when either clock says so: when the wall clock shows the stop time, or when as much steady
time has passed as there was until the stop time at the start.
"""

import math
import time
from dataclasses import dataclass, field

from labkit.guard.limits import SpendingLimits

WARN_SHARE = 0.8
SLEW_SECONDS = 2.0  # what a clock may be corrected by without a word: NTP's own threshold for a step is 0.128 s


def steady_clock() -> float:
    """Seconds that only ever go up, by one a second, also while the machine sleeps where the system counts that."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@dataclass(frozen=True)
class Reading:
    """Seconds since the start, seconds left until `limit` ("budget" or "stop time") ends the run, and by how many
    seconds the wall clock has been set since the start (0 while it keeps time)."""

    seconds: float
    left: float
    limit: str
    clock_change: float

    @property
    def share(self) -> float:
        """The part of the allowed time that is used: 1 at the limit."""
        return self.seconds / (self.seconds + self.left) if self.left > 0 else 1.0


@dataclass(frozen=True)
class Meter:
    """Started when it is made."""

    limits: SpendingLimits
    steady_start: float = field(default_factory=steady_clock)
    wall_start: float = field(default_factory=time.time)

    def read(self, steady: float | None = None, wall: float | None = None) -> Reading:
        """Now, or at the given times of both clocks in seconds."""
        seconds = (steady_clock() if steady is None else steady) - self.steady_start
        change = (time.time() if wall is None else wall) - self.wall_start - seconds
        change = change if abs(change) > SLEW_SECONDS else 0.0
        ahead = self.limits.stop_at.timestamp() - self.wall_start if self.limits.stop_at else math.inf
        left = {"budget": self.limits.budget_seconds - seconds, "stop time": ahead - seconds - max(0.0, change)}
        limit = min(left, key=left.get)
        return Reading(seconds, left[limit], limit, change)

    def cost(self, seconds: float) -> float:
        """US dollars."""
        return self.limits.hourly_usd * seconds / 3600

    def says(self, reading: Reading) -> str:
        """One line: time used, money used, when it stops."""
        spent, budget = f"${self.cost(reading.seconds):.2f}", self.limits.budget_usd
        money = f"{spent} of ${budget:.2f}" if budget else spent
        left = max(0.0, reading.left)
        return f"{clock_text(reading.seconds)} used, {money}; the {reading.limit} stops it in {clock_text(left)}"


def clock_text(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
