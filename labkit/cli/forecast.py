"""Commands that look ahead and look for faults: forecast, doctor."""

import sys
from typing import Annotated

import typer

from labkit.cli.app import EvidenceOption, JsonOption, ModelOption, PortOption, app, open_pack, print_json


@app.command()
def forecast(
    route: Annotated[str | None, typer.Option(help="local_cpu, free_colab or rented_gpu (default: all three)")] = None,
    evidence: EvidenceOption = None,
    work: Annotated[str, typer.Option(help="also show what this lesson does, such as 13.6")] = "",
    as_json: JsonOption = False,
) -> None:
    """Measure this machine for half a minute; predict minutes, memory and money for each lesson on each route."""
    from labkit.routes import load_route, load_routes
    from labkit.workbook import lesson

    routes = (load_route(route),) if route else load_routes()
    asked = lesson(work).number if work else ""
    pack = open_pack(evidence, route) if evidence else None

    from labkit.forecast.keep import forecast_dict, new_probe, write_forecast
    from labkit.forecast.predict import forecast as predict

    probe = new_probe(load_route(pack.route if pack else route or "local_cpu"), _said)
    here = pack.route if pack else "local_cpu"
    made = predict(probe, routes, here)
    if pack:
        write_forecast(pack, probe, predict(probe, load_routes(), here))
    if as_json:
        print_json(forecast_dict(probe, made))
        return
    from labkit.forecast.rows import forecast_rows, notes, work_rows
    from labkit.report.forecast import print_rows

    print_rows(forecast_rows(made))
    if asked:
        print_rows(work_rows(next(one for one in made[0].lessons if one.lesson == asked), probe.cost))
    print(*notes(made), sep="\n")


def _said(text: str) -> None:
    print(f"measuring {text}", file=sys.stderr, flush=True)


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
