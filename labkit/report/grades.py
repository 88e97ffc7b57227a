"""The grades of a class: a CSV for pandas and spreadsheets, a page with sort and filter, a summary in the terminal."""

import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup
from rich.console import Console
from rich.text import Text

from labkit.errors import LabError
from labkit.evidence import csv_text, utc_now, write_atomically
from labkit.grading import UNREADABLE, Grade, Rubric
from labkit.grading.copies import Shared
from labkit.grading.standing import ARTIFACTS, CHECKS, CLAIM_NAMES
from labkit.report.html import render, script
from labkit.report.tables import wrapping_table
from labkit.verification import Verdict

VERDICTS = (*(verdict.value for verdict in Verdict), UNREADABLE)
KINDS = (("artifact", ARTIFACTS), ("check", CHECKS), ("claim", CLAIM_NAMES))
ACTIONS = 3
SEPARATOR = "; "
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def require_format(path: Path) -> None:
    """Raises LabError unless `path` ends in .csv or .html: before a class is read, not after it."""
    if path.suffix.lower() not in (".csv", ".html"):
        raise LabError(f"{path.name} is neither .csv nor .html", "give --out grades.csv or --out grades.html")


def write_grades(grades: Sequence[Grade], rubric: Rubric, path: Path) -> None:
    """Write the grades as the name of `path` says. Raises LabError for another name and when it cannot be written."""
    require_format(path)
    if path.suffix.lower() == ".csv":
        rows = csv_rows(grades, rubric)
        write_atomically(path, csv_text(rows, columns(rubric)).encode("utf-8", errors="replace"))
    else:
        write_atomically(path, render("grades.html", page_values(grades, rubric)))


def columns(rubric: Rubric) -> list[str]:
    """The CSV's columns: the same for every class that is marked by the same rubric."""
    names = ["pack", "submission", "route", "verdict", "score", "minutes_on_task", "first_written", "last_written"]
    names += ["shared_files", "shared_with", *(f"next_{place + 1}" for place in range(ACTIONS)), "problem"]
    names += [f"points: {criterion.title}" for criterion in rubric.criteria]
    return [*names, *(f"{kind}: {name}" for kind, titles in KINDS for name in titles)]


def csv_rows(grades: Sequence[Grade], rubric: Rubric) -> list[dict[str, object]]:
    """One row for each pack; what does not apply is an empty cell. Text that a spreadsheet would run as a formula
    is quoted with an apostrophe."""
    return [{key: _cell(value) for key, value in _csv_row(grade).items()} for grade in grades]


def _csv_row(grade: Grade) -> dict[str, object]:
    row = {
        "pack": grade.pack,
        "submission": grade.submission,
        "route": grade.route,
        "verdict": grade.verdict,
        "score": grade.score,
        "minutes_on_task": grade.pace.minutes,
        "first_written": grade.pace.first,
        "last_written": grade.pace.last,
        "shared_files": SEPARATOR.join(file for found in grade.shared for file in found.files),
        "shared_with": SEPARATOR.join(dict.fromkeys(_others(found) for found in grade.shared)),
        "problem": grade.problem,
    }
    row |= {f"next_{place}": action for place, action in enumerate(grade.actions[:ACTIONS], start=1)}
    row |= {f"points: {mark.title}": round(mark.points, 2) for mark in grade.marks}
    if grade.verdicts:
        row |= {f"{kind}: {name}": grade.verdicts.get(name) for kind, titles in KINDS for name in titles}
    return row


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA) else value


def _others(found: Shared) -> str:
    more = found.others - len(found.with_packs)
    return ", ".join(found.with_packs) + (f" and {more} more" if more > 0 else "")


def page_values(grades: Sequence[Grade], rubric: Rubric) -> dict[str, object]:
    """What the page shows: the class in figures, what it lacks most, and a row for each pack."""
    source, policy = script("grades.js")
    return {
        "rows": [_page_row(grade) for grade in grades],
        "rubric": rubric,
        "summary": summary(grades),
        "hardest": hardest(grades, rubric),
        "verdicts": [verdict for verdict in VERDICTS if any(grade.verdict == verdict for grade in grades)],
        "routes": sorted({grade.route for grade in grades} - {""}),
        "script": Markup(source),  # our own file, and the only text of the page that is not escaped
        "policy": policy,
        "time": utc_now(),
    }


def _page_row(grade: Grade) -> dict[str, object]:
    open_ones = {verdict: [n for n, said in grade.verdicts.items() if said == verdict] for verdict in VERDICTS[1:3]}
    return {
        "grade": grade,
        "supported": sum(said == Verdict.SUPPORTED for said in grade.verdicts.values()),
        "of": len(grade.verdicts),
        "open": {verdict: names for verdict, names in open_ones.items() if names},
        "shared": [(", ".join(found.files), _others(found)) for found in grade.shared],
    }


def summary(grades: Sequence[Grade]) -> str:
    """How many packs, how they stand, the median score, and how many share outputs."""
    counts = Counter(grade.verdict for grade in grades)
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    median = statistics.median(grade.score for grade in grades)
    copied = sum(bool(grade.shared) for grade in grades)
    return f"{len(grades)} packs: {told}. Median score {median:g}. {copied} share outputs with another pack."


def hardest(grades: Sequence[Grade], rubric: Rubric, most: int = 10) -> list[tuple[str, int, int]]:
    """(name, packs that do not support it, packs that could earn it): what the rubric asks for, most lacking first."""
    lacking, asked = Counter(), Counter()
    for grade in grades:
        needs = {name for criterion in rubric.of_route(grade.route) for name in criterion.needs} if grade.marks else ()
        asked.update(needs)
        lacking.update(name for name in needs if grade.verdicts.get(name) != Verdict.SUPPORTED)
    order = sorted(lacking, key=lambda name: (-lacking[name], name))
    return [(name, lacking[name], asked[name]) for name in order[:most]]


def print_grades(grades: Sequence[Grade], loose: Sequence[str], out: Sequence[Path], console: Console | None = None):
    """The class in the terminal: what needs a person's eye, and the summary. The rows are in the files."""
    console = console or Console(highlight=False)
    flagged = wrapping_table("pack", "look at", "why")
    for grade in grades:
        for found in grade.shared:
            flagged.add_row(Text(grade.pack), "same outputs", Text(f"{', '.join(found.files)}: as in {_others(found)}"))
        if grade.problem:
            flagged.add_row(Text(grade.pack), UNREADABLE, Text(grade.problem))
    if shown := flagged.row_count:
        if shown > 20:
            console.print(f"{shown} findings to look at: they are in the rows of {out[0].name}.", markup=False)
        else:
            console.print(flagged)
    if loose:
        more = f" and {len(loose) - 5} more" if len(loose) > 5 else ""
        console.print(Text(f"left out, no folder and no archive: {', '.join(loose[:5])}{more}"))
    console.print(Text(summary(grades), style="bold"))
    console.print(Text(f"wrote {', '.join(path.name for path in out)}"))
