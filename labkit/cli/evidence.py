"""Commands about machine, routes and pack: env, route, decide, verify, check, record, import, export, report, run."""

from pathlib import Path
from typing import Annotated

import typer

from labkit.cli.app import (
    DeviceOption,
    EvidenceOption,
    JsonOption,
    ModelOption,
    RouteOption,
    app,
    export,
    open_pack,
    print_json,
)
from labkit.errors import LabError


@app.command()
def env(as_json: JsonOption = False, device: DeviceOption = "auto") -> None:
    """Report this machine: Python, CPU, memory, torch, the device and why, GPU, package versions."""
    from labkit.environment import environment_report

    report = environment_report(device)
    if as_json:
        print_json(report.as_dict())
    else:
        print(report.as_text(), end="")


@app.command()
def route(name: Annotated[str | None, typer.Argument(help="one route; all three without it")] = None) -> None:
    """Show the compute routes: what each proves, what it cannot, stop rule, fallback, required artifacts."""
    from labkit.routes import load_route, load_routes

    for shown in [load_route(name)] if name else load_routes():
        print(f"{shown.title} ({shown.route})\n  {shown.goal}")
        for title, items in (("Proves", shown.proves), ("Cannot prove", shown.cannot_prove)):
            print(f"  {title}:")
            print("".join(f"    - {item}\n" for item in items), end="")
        print(f"  Stop rule: {shown.stop_rule}\n  Fallback: {shown.fallback}")
        print(f"  Required artifacts: {', '.join(shown.required_artifacts)}\n")


@app.command()
def decide(
    evidence: EvidenceOption = None,
    route: RouteOption = None,
    model: ModelOption = "mini-instruct",
    project: Annotated[Path | None, typer.Option(help="JSON file with the project (default: the chapter's)")] = None,
    quant: Annotated[str, typer.Option(help="format of the weights, for example Q4_K_M (default: bf16)")] = "",
    failed_cases: Annotated[
        str, typer.Option(help="ids in eval_results.csv that a smaller model failed, comma-separated: why a larger one")
    ] = "",
) -> None:
    """Walk down the ladder (task, licence, hardware, runtime, evidence); write the decision and what was refused."""
    from labkit.decisions import example_project, load_project, rejected_in, write_decisions
    from labkit.evidence import read_json

    wanted = load_project(project) if project else None
    pack = open_pack(evidence, route or (wanted.available_route if wanted else None))
    cases = tuple(name.strip() for name in failed_cases.split(",") if name.strip())
    write_decisions(pack, wanted or example_project(pack.route), model, quant=quant, failed_cases=cases)
    for rung in read_json(pack.path("model_runtime_decision.json"))["ladder"]:
        print(f"{rung['step']}: {rung['answer']}")
    print("".join(f"rejected: {found.name}: {found.reason}\n" for found in rejected_in(pack)), end="")
    print("wrote model_decision.md, model_runtime_decision.json, open_llm_runbook.json, open_weight_route.json")


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="the evidence pack")],
    as_json: JsonOption = False,
    lesson: Annotated[str | None, typer.Option(help="only this lesson's artifacts, for example 13.2")] = None,
) -> None:
    """Read a pack back: exit 0 when all that is required is supported, 1 not yet, 2 contradicted."""
    from labkit.verification import verify as read_back

    found = read_back(folder, lesson)
    if as_json:
        print_json(found.as_dict())
    else:
        from labkit.report.verification import print_verification

        print_verification(found)
    raise typer.Exit(found.exit_code)


@app.command()
def check(
    lesson: Annotated[str, typer.Argument(help="the lesson, for example 13.2; 13.0 is the whole pack")],
    evidence: EvidenceOption = None,
    route: RouteOption = None,
) -> None:
    """Say what a lesson has left in the pack: done, missing, in conflict, what to do next. Exits as `verify` does."""
    from labkit.layout import evidence_folder
    from labkit.routes import load_route
    from labkit.workbook import check_folder

    usual = evidence_folder(load_route(route or "local_cpu").route)
    raise typer.Exit(check_folder(lesson, evidence or usual))


@app.command()
def record(
    names: Annotated[list[str], typer.Argument(help="forms of the pack, for example model_decision.md")],
    evidence: EvidenceOption = None,
    route: RouteOption = None,
) -> None:
    """Enter forms that you have written in your own words: decisions, plans, the README. Never what was measured."""
    pack = open_pack(evidence, route)
    for name in names:
        print(f"recorded: {pack.record_form(name).name}")


@app.command("import")
def import_(
    archive: Annotated[Path, typer.Argument(help="a pack as .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz")],
    out: Annotated[
        Path | None, typer.Option("--out", help="a new folder (default: evidence/<the archive's name>)")
    ] = None,
) -> None:
    """Unpack somebody's pack safely: no path out of the folder, no links, limits on size, secrets taken out."""
    from labkit.exchange import import_pack
    from labkit.layout import evidence_folder

    parcel = import_pack(archive, out or evidence_folder("local_cpu").parent / archive.name.split(".")[0])
    _tell_parcel(parcel, "unpacked")
    print(f"next: labkit verify {_shown(parcel.path)}")


@export.command("pack")
def export_pack_(
    folder: Annotated[Path, typer.Argument(help="the evidence pack")],
    out: Annotated[Path | None, typer.Option("--out", help="a new file (default: <the pack's name>.zip)")] = None,
) -> None:
    """Write a pack into one zip file to hand in: without secrets, and without cells that a spreadsheet would run."""
    from labkit.exchange import export_pack

    _tell_parcel(export_pack(folder, out or Path(f"{folder.resolve().name}.zip")), "packed")


def _tell_parcel(parcel, done: str) -> None:
    for name, found in parcel.changed.items():
        print(f"changed on the way: {name}: {', '.join(f'{count} {kind}' for kind, count in found.items())}")
    print(f"{done}: {parcel.files} files, {_shown(parcel.path)}")


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="the evidence pack")]) -> None:
    """Write report.html into a pack: claims, artifacts, plots, in one file without a network."""
    from labkit.evidence import MANIFEST
    from labkit.report.page import write_report

    if not (folder / MANIFEST).exists():  # no page into a folder of something else
        raise LabError(
            f"there is no pack in {folder.resolve().name}", "give the folder of a pack, or make one with `labkit run`"
        )
    print(write_report(folder))


@app.command()
def run(
    route: Annotated[str, typer.Option(help="local_cpu, free_colab or rented_gpu")] = "local_cpu",
    lesson: Annotated[str | None, typer.Option(help="only this lesson, for example 13.2")] = None,
    required: Annotated[
        bool, typer.Option("--required", help="only the lessons that leave what the route requires: not 13.6 and 13.7")
    ] = False,
    evidence: EvidenceOption = None,
    stop_hook: Annotated[
        str, typer.Option(help="rented_gpu: shell command after the end, such as a provider's stop command")
    ] = "",
) -> None:
    """Run the notebooks in order on a route, keep the executed copies, then verify the pack.

    On rented_gpu this is guarded by the budget and stop time of gpu_plan.md, and does not start without it.
    """
    if _guarded_elsewhere(route, stop_hook):
        from labkit.guard.start import guarded
        from labkit.workbook.rented import rented_task

        raise typer.Exit(guarded(rented_task(evidence or "", lesson, stop_hook, required)))
    from labkit.forecast.compare import after_run
    from labkit.report.page import write_report
    from labkit.report.verification import print_verification
    from labkit.verification import verify as read_back
    from labkit.workbook import RunDisplay, run_workbook

    with RunDisplay() as display:
        done = run_workbook(route, str(evidence or ""), lesson, display, required)
    if done.kept:
        print(f"the run before was cut off; it had finished {', '.join(done.kept)}, and this one went on from there")
    print(after_run(open_pack(done.folder, route)))
    found = read_back(done.folder, lesson)
    print_verification(found)
    print(f"\npack:   {_shown(done.folder)}\nreport: {_shown(write_report(done.folder))}")
    raise typer.Exit(found.exit_code)


def _guarded_elsewhere(route: str, stop_hook: str) -> bool:
    """Whether this run must be started by a guard. Inside one, SIGTERM ends it as Ctrl+C does: in order."""
    import signal

    from labkit.guard.start import under_guard

    if route != "rented_gpu" and stop_hook:
        raise LabError("--stop-hook is for the route rented_gpu", "leave it out, or use `labkit guard`")
    if route == "rented_gpu" and under_guard():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    return route == "rented_gpu" and not under_guard()


def _shown(path: Path) -> Path:
    here = Path.cwd()
    return path.resolve().relative_to(here) if path.resolve().is_relative_to(here) else path
