"""A run on a rented machine: no start without its plan, and under the limits of that plan."""

import re
import sys
from datetime import UTC, datetime
from pathlib import Path

from labkit.errors import LabError
from labkit.evidence import Pack
from labkit.guard.limits import SpendingLimits
from labkit.guard.watch import Task
from labkit.routes import Route, load_route, planned_stop
from labkit.verification.plan_checks import check_notes
from labkit.verification.reading import PackReader, parse_fields
from labkit.verification.release_checks import GUARD
from labkit.verification.verdicts import NotYet
from labkit.workbook.packs import open_pack
from labkit.workbook.route_plan import GPU_PLAN, LESSON

RENTED = "rented_gpu"
GRACE_SECONDS = 30.0  # for notebooks and their servers; with it the stop begins before the limit
_DOLLARS = re.compile(r"\$(\d+(?:\.\d+)?)")
_AGAIN = f"delete {GPU_PLAN} and run `labkit run --route {RENTED} --lesson {LESSON}`, which writes another"


def rented_task(
    evidence_dir: str | Path = "", lesson: str | None = None, hook: str = "", required: bool = False
) -> Task:
    """The guarded command that runs `lesson`, those that the route requires, or all of them, on the route rented_gpu.

    The limits are those of gpu_plan.md. Lesson 13.1, which writes it, begins with what the route file allows.
    Raises LabError when the plan is missing, not filled, or its stop time has passed.
    """
    pack, route = open_pack(RENTED, evidence_dir), load_route(RENTED)
    first = lesson == LESSON and not pack.path(GPU_PLAN).exists()
    limits = _first_limits(route) if first else _planned_limits(pack)
    argv = [sys.executable, "-m", "labkit.cli", "run", "--route", RENTED, "--evidence", str(pack.folder.resolve())]
    argv += ["--lesson", lesson] if lesson else ["--required"] if required else []
    return Task(tuple(argv), limits, pack.folder, RENTED, GUARD, GRACE_SECONDS, hook)


def _first_limits(route: Route) -> SpendingLimits:
    stop = datetime.fromisoformat(planned_stop(route, datetime.now(UTC)))
    return SpendingLimits(route.hourly_usd, route.budget_usd, stop)


def _planned_limits(pack: Pack) -> SpendingLimits:
    reader = PackReader(pack.folder)
    try:
        check_notes(reader, GPU_PLAN)
        plan = parse_fields(reader.text(GPU_PLAN), GPU_PLAN)
    except NotYet as error:
        what = f"a rented machine is not started without its plan: {error}"
        step = f"run `labkit run --route {RENTED} --lesson {LESSON}`, read {GPU_PLAN}, then start again"
        raise LabError(what, step, where=pack.folder.name) from None
    stop = _stop_time(plan.get("Stop time", ""))
    if stop <= datetime.now(UTC):
        what = f"the stop time of the plan, {stop.isoformat(timespec='minutes')}, has passed"
        raise LabError(what, f"give the machine back; for another rental {_AGAIN}", where=GPU_PLAN)
    return SpendingLimits(_dollars(plan, "Hourly price"), _dollars(plan, "Budget"), stop)


def _stop_time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text.strip()).astimezone(UTC)
    except ValueError:
        raise LabError(f"the plan's stop time {text!r} is not a date and time", _AGAIN, where=GPU_PLAN) from None


def _dollars(plan: dict[str, str], name: str) -> float:
    found = _DOLLARS.search(plan.get(name, ""))
    if not found or not float(found[1]):
        raise LabError(f"the plan's {name.lower()} is no amount of US dollars above zero", _AGAIN, where=GPU_PLAN)
    return float(found[1])
