"""What a notebook calls first and last: open the pack, and read back what the lesson has left in it."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from labkit.evidence import Pack
from labkit.layout import evidence_folder
from labkit.routes import Route, load_route
from labkit.verification import Finding, Verdict, Verification, verify
from labkit.verification.rules import RULES
from labkit.verification.two_hour_plan import box_states
from labkit.workbook.lessons import LESSONS, Lesson, lesson, run_order


def open_pack(route: str, evidence_dir: str | Path = "") -> Pack:
    """The pack that a notebook on `route` writes to: `evidence_dir`, else the route's own folder under evidence/.

    Raises LabError for an unknown route, or a folder that holds the pack of another route.
    """
    load_route(route)
    return Pack(Path(evidence_dir).expanduser() if evidence_dir else evidence_folder(route), route)


def required_lessons(route: Route) -> tuple[Lesson, ...]:
    """The lessons that leave what `route` requires, in the order of a run, and 13.0, which reads it."""
    needed = {number for rule in RULES if rule.name in route.required_artifacts for number in rule.lessons}
    return tuple(entry for entry in run_order() if entry.number in {*needed, "13.0"})


def check(number: str, pack: Pack) -> None:
    """Print what lesson `number` has left in the pack: done, missing or in conflict, and the one next action.

    The verdicts are read back from the files; nothing that a notebook believes about itself counts. 13.0 leaves no
    file of its own: it reads the whole pack.
    """
    check_folder(number, pack.folder)


def check_folder(number: str, folder: Path) -> int:
    """`check` of the pack in `folder`, which is `labkit check`; returns the exit code of `labkit verify`."""
    lesson(number)
    found = verify(folder, lesson=None if number == "13.0" else number)
    print("\n".join(_summary(number, found.route, found.artifacts, found.cross_checks)))
    return found.exit_code


def _summary(number: str, route: str, artifacts: Sequence[Finding], cross_checks: Sequence[Finding] = ()) -> list[str]:
    """Cross-checks that are not made yet are told once every artifact is there: until then they say the same again."""
    done = [finding.name for finding in artifacts if finding.verdict is Verdict.SUPPORTED]
    conflicts = [found for found in (*artifacts, *cross_checks) if found.verdict is Verdict.CONTRADICTED]
    missing = [finding for finding in artifacts if finding.verdict is Verdict.NOT_YET]
    missing = missing or [finding for finding in cross_checks if finding.verdict is Verdict.NOT_YET]
    lines = [f"Lesson {number} on the route {route}: {len(done)} of {len(artifacts)} artifacts supported"]
    lines.append(f"done:     {', '.join(done) or 'nothing yet'}")
    lines += [f"conflict: {_in_one_line(finding)}" for finding in conflicts]
    lines += [f"missing:  {_in_one_line(finding)}" for finding in missing]
    actions = [finding.next_action for finding in (*conflicts, *missing) if finding.next_action]
    return [*lines, f"next:     {actions[0] if actions else _after(number)}"]


def _in_one_line(finding: Finding) -> str:
    detail = finding.detail.removeprefix(f"{finding.name} is missing")
    return textwrap.shorten(f"{finding.name}: {detail}" if detail else finding.name, 160, placeholder=" …")


def _after(number: str) -> str:
    if number == "13.0":
        return "nothing is missing: answer the exit questions, and hand in the pack"
    later = [entry for entry in LESSONS if entry.number > number]
    return (
        f"open {later[0].file}" if later else "read the whole table with `labkit verify`, or open 13_0_checklist.ipynb"
    )


def plan_rows(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """The two-hour plan against a pack, one row of text for each box, for a table."""
    return [
        {
            "box": f"{number}",
            "minutes": f"{state.box.minutes}",
            "lesson": state.box.lesson,
            "what you do": state.box.title,
            "state": "filled" if state.filled else "not yet",
            "still open": ", ".join(state.still_open),
        }
        for number, state in enumerate(box_states(findings), start=1)
    ]


def checklist_markdown(found: Verification) -> str:
    """A verification as a Markdown task list: a tick for each supported artifact, and for each open one what to do."""
    lines = [f"**Pack of the route {found.route}**", ""]
    for finding in found.artifacts:
        done = finding.verdict is Verdict.SUPPORTED
        note = "" if done else f" ({finding.verdict}): {finding.next_action}"
        lines.append(f"- {'☑' if done else '☐'} {finding.lesson} `{finding.name}`{note}")
    return "\n".join(lines) + "\n"
