"""Grading a class: one row for each pack of a folder."""

from pathlib import Path
from typing import Annotated

import typer

from labkit.cli.app import app

OUT_HELP = "where the grades go: a .csv or .html file; give it twice for both"
RUBRIC_HELP = "a YAML file with the points (default: data/rubrics/default.yaml)"


@app.command()
def grade(
    folder: Annotated[Path, typer.Argument(help="the folder with the packs of a class, as folders or archives")],
    out: Annotated[list[Path], typer.Option("--out", help=OUT_HELP)],
    rubric: Annotated[Path | None, typer.Option(help=RUBRIC_HELP)] = None,
    jobs: Annotated[int | None, typer.Option(help="processes (default: one for each core)")] = None,
) -> None:
    """Verify every pack in a folder, mark it by a rubric, and flag copies: a row for each, also for a broken one."""
    from labkit.grading import find_submissions, grade_folder, load_rubric
    from labkit.progress import AnswerDisplay
    from labkit.report.grades import print_grades, require_format, write_grades

    for path in out:
        require_format(path)
    points = load_rubric(rubric)
    submissions, loose = find_submissions(folder)
    with AnswerDisplay(len(submissions), "submissions") as display:
        grades = grade_folder(submissions, points, jobs, display)
    for path in out:
        write_grades(grades, points, path)
    print_grades(grades, loose, out)
