"""The failure drill of 13.4: failures of a server that are really provoked, noticed, recovered from and recorded.

record says what a drill leaves behind, site is the port and the server it happens on, starts and answering hold the
drills, menu runs them by name. Nothing in a record is written beforehand: every message, status and time is read from
the run.
"""

from labkit.drills.menu import DRILLS, choose_drills, record_drills, run_drills
from labkit.drills.record import Answer, Drill, NotPossible, drill_rows, outcome, require_recovery, write_drill

__all__ = [
    "DRILLS",
    "Answer",
    "Drill",
    "NotPossible",
    "choose_drills",
    "drill_rows",
    "outcome",
    "record_drills",
    "require_recovery",
    "run_drills",
    "write_drill",
]
