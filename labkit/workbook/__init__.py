"""The workbook as a whole: its lessons, the pack that a notebook writes to, and papermill over the notebooks in order.

papermill is imported inside the functions that run notebooks, so that a notebook which only wants its pack pays
nothing for it.
"""

from labkit.verification.two_hour_plan import PLAN, Box, BoxState, box_states
from labkit.workbook.lessons import LESSONS, Lesson, lesson, run_order
from labkit.workbook.packs import check_folder, checklist_markdown, open_pack, plan_rows, required_lessons
from labkit.workbook.progress import Listener, Progress, RunDisplay
from labkit.workbook.route_plan import write_route_plan
from labkit.workbook.runner import RunResult, parameters_for, run_workbook
from labkit.workbook.session import begin, check

__all__ = [
    "LESSONS",
    "PLAN",
    "Box",
    "BoxState",
    "Lesson",
    "Listener",
    "Progress",
    "RunDisplay",
    "RunResult",
    "begin",
    "box_states",
    "check",
    "check_folder",
    "checklist_markdown",
    "lesson",
    "open_pack",
    "parameters_for",
    "plan_rows",
    "required_lessons",
    "run_order",
    "run_workbook",
    "write_route_plan",
]
