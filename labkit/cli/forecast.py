"""Commands that look ahead and look for faults: forecast, doctor."""

from typing import Annotated

import typer

from labkit.cli.app import JsonOption, ModelOption, PortOption, app, print_json


@app.command()
def doctor(
    symptom: Annotated[str, typer.Argument(help="a symptom, or an error message in quotes; all without it")] = "",
    model: ModelOption = "mini-instruct",
    port: PortOption = 8000,
    as_json: JsonOption = False,
) -> None:
    """Symptom, first check, fallback, and what this machine answers: exit 1 when a check found a problem, else 0."""
    from labkit.doctor import Question, as_dict, examine, exit_code

    found = examine(symptom, Question(model, port))
    if as_json:
        print_json(as_dict(found))
    else:
        from labkit.report.doctor import print_diagnoses

        print_diagnoses(found)
    raise typer.Exit(exit_code(found))
