"""The `labkit` command: each command is a few lines around a room's functions.

Rooms are imported inside the commands, so that `labkit --help` loads neither torch nor transformers.
"""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from labkit.errors import LabError
from labkit.layout import display_path, evidence_folder

app = typer.Typer(
    help="Deploy an open-weight language model, and leave evidence that a program can check.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

DEVICE_HELP = "auto, cpu, cuda or mps; a device that is asked for by name and absent is an error"
MODEL_HELP = "mini-instruct (shipped here), a folder with a transformers checkpoint, or a hub id"
PACK_HELP = "the evidence pack's folder (default: evidence/<route>)"
ROUTE_HELP = "local_cpu, free_colab or rented_gpu (default: the pack's own, else local_cpu)"

DeviceOption = Annotated[str, typer.Option("--device", help=DEVICE_HELP)]
ModelOption = Annotated[str, typer.Option("--model", help=MODEL_HELP)]
OutOption = Annotated[Path | None, typer.Option("--out", help=PACK_HELP)]
EvidenceOption = Annotated[Path | None, typer.Option("--evidence", help=PACK_HELP)]
RouteOption = Annotated[str | None, typer.Option("--route", help=ROUTE_HELP)]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON for a program")]
UrlOption = Annotated[str, typer.Option("--base-url", help="an OpenAI-compatible server")]
PortOption = Annotated[int, typer.Option("--port", help="TCP port")]

LOCAL_SERVER = "http://127.0.0.1:8000"


def main() -> None:
    """Run a command; a LabError becomes two lines and its exit code, never a traceback."""
    try:
        app()
    except LabError as error:
        place = f" ({error.where})" if error.where else ""
        print(f"error: {error.what}{place}\nnext: {error.next_step}", file=sys.stderr)
        sys.exit(error.exit_code)


def _pack(folder: Path | None, route: str | None):
    """The pack in `folder`, opened on `route`; without a route the pack's own, else local_cpu."""
    from labkit.evidence import MANIFEST, Pack, read_manifest
    from labkit.routes import load_route

    folder = folder or evidence_folder(route or "local_cpu")
    if route is None:
        route = read_manifest(folder)["route"] if (folder / MANIFEST).exists() else "local_cpu"
    return Pack(folder, load_route(route).route)


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


@app.command()
def env(as_json: JsonOption = False, device: DeviceOption = "auto") -> None:
    """Report this machine: Python, CPU, memory, torch, the device and why, GPU, package versions."""
    from labkit.environment import environment_report

    report = environment_report(device)
    if as_json:
        _print_json(report.as_dict())
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
def train(
    out: Annotated[Path, typer.Option("--out", help="folder for the training run, usually the evidence pack")],
    steps: Annotated[int, typer.Option(help="optimizer steps")] = 300,
    seed: Annotated[int, typer.Option(help="the same seed and machine give the same losses on a CPU")] = 13,
    device: DeviceOption = "auto",
    text: Annotated[Path | None, typer.Option(help="UTF-8 text file (default: the shop's corpus)")] = None,
    tokenizer: Annotated[str, typer.Option(help="bpe or char")] = "bpe",
    batch_size: Annotated[int, typer.Option(help="windows in one step")] = 12,
    recipe: Annotated[Path | None, typer.Option(help="train the chat model of a recipe.yaml instead")] = None,
    route: RouteOption = None,
) -> None:
    """Train mini GPT-2 on a text, or a chat model from a recipe."""
    if recipe:
        _train_recipe(recipe, out, device)
        return
    from labkit.environment import choose_device
    from labkit.progress import StepDisplay
    from labkit.training.mini_gpt2 import SHOP_TEXT, MiniRun, check_run, train_into_pack

    run = MiniRun(text=text or SHOP_TEXT, steps=steps, seed=seed, tokenizer=tokenizer, batch_size=batch_size)
    check_run(run)
    choose_device(device)  # before the pack: a run that cannot start must leave no file
    with StepDisplay(steps) as display:
        result = train_into_pack(_pack(out, route), run, device, display)
    print(f"{result.verdict}: held-out loss {result.rows[0].val_loss:.4f} -> {result.rows[-1].val_loss:.4f}")
    print(f"sample: {result.sample!r}")


def _train_recipe(recipe: Path, out: Path, device: str) -> None:
    from labkit.progress import StepDisplay
    from labkit.training.recipe import read_recipe, train_from_recipe

    with StepDisplay(read_recipe(recipe).steps) as display:
        rows = train_from_recipe(recipe, out, device, display)
    print(f"saved {out.name}: held-out loss {rows[-1].val_loss:.4f}")


@app.command()
def chat(
    prompt: Annotated[str | None, typer.Option(help="one question; else one is read from each line")] = None,
    model: ModelOption = "mini-instruct",
    device: DeviceOption = "auto",
    note: Annotated[str | None, typer.Option(help="policy note to put before it, such as POL-01")] = None,
    max_tokens: Annotated[int, typer.Option(help="longest answer, in tokens")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.0,
    seed: int = 0,
    out: Annotated[Path | None, typer.Option("--out", help="also write first_run.md into this pack")] = None,
    route: RouteOption = None,
) -> None:
    """Ask the model a question; with --out, keep the first run as evidence."""
    from labkit.adaptation.notes import find_note, with_note
    from labkit.generation import Sampling, load_chat_model, write_first_run

    found = find_note(note) if note else None
    loaded = load_chat_model(model, device)
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, seed=seed)
    for question in [prompt] if prompt is not None else (line.strip() for line in sys.stdin):
        if not question:
            continue
        asked = with_note(question, found) if found else question
        answer = None
        for piece in loaded.stream([{"role": "user", "content": asked}], sampling):
            if isinstance(piece, str):
                print(piece, end="", flush=True)
            else:
                answer = piece
        print()
        if out:
            write_first_run(_pack(out, route), loaded, asked, answer, _own_command())


def _own_command() -> str:
    """The command that is running, as it may stand in an artifact: folders by their last name."""
    return shlex.join(["labkit", *(display_path(Path(word)) if os.sep in word else word for word in sys.argv[1:])])


@app.command()
def serve(
    model: ModelOption = "mini-instruct",
    host: Annotated[str, typer.Option(help="another address than loopback needs LABKIT_API_KEY")] = "127.0.0.1",
    port: PortOption = 8000,
    device: DeviceOption = "auto",
    max_input_tokens: int = 1024,
    max_output_tokens: int = 256,
    max_body_bytes: int = 262_144,
    request_seconds: float = 60.0,
    concurrency: int = 2,
    queue: int = 8,
) -> None:
    """Serve the model behind an OpenAI-compatible API until Ctrl+C or `labkit stop`."""
    from labkit.serving.contract import Limits, ServerSettings
    from labkit.serving.process import serve as run_server

    limits = Limits(max_input_tokens, max_output_tokens, max_body_bytes, request_seconds, concurrency, queue)
    run_server(ServerSettings(model=model, host=host, port=port, device=device, limits=limits))


@app.command()
def smoke(base_url: UrlOption = LOCAL_SERVER, out: OutOption = None, route: RouteOption = None) -> None:
    """Prove with the openai client that a server answers, and write api_smoke_test.json."""
    from labkit.serving.smoke import smoke_test

    proof = smoke_test(base_url)
    _pack(out, route).write_json("api_smoke_test.json", proof, "13.2")
    _print_json(proof)


@app.command("eval")
def evaluate(
    cases: Annotated[Path | None, typer.Option(help="CSV of cases (default: data/eval_cases.csv)")] = None,
    out: OutOption = None,
    model: Annotated[str | None, typer.Option(help=f"{MODEL_HELP}; not together with --base-url")] = None,
    base_url: Annotated[str | None, typer.Option(help="evaluate the model behind this server instead")] = None,
    device: DeviceOption = "auto",
    max_tokens: int = 96,
    route: RouteOption = None,
) -> None:
    """Ask the fixed cases, judge each answer, and write the results and the failure table by risk."""
    from labkit.evaluation.cases import EVAL_CASES, load_cases
    from labkit.evaluation.runner import cases_with_review, evaluate, write_evaluation
    from labkit.evaluation.targets import endpoint_target, model_target
    from labkit.generation import Sampling, load_chat_model
    from labkit.report import print_failures

    if model and base_url:
        raise LabError("--model and --base-url were both given", "give one of them")
    asked = load_cases(cases or EVAL_CASES)
    target = endpoint_target(base_url) if base_url else model_target(load_chat_model(model or "mini-instruct", device))
    pack = _pack(out, route)
    sampling = Sampling(max_tokens=max_tokens)
    results = evaluate(target, cases_with_review(pack, asked), sampling)
    print_failures(write_evaluation(pack, results, target, sampling))


@app.command()
def bench(
    base_url: UrlOption = LOCAL_SERVER,
    requests: Annotated[int, typer.Option(help="measured requests, after a warm-up")] = 20,
    concurrency: Annotated[int, typer.Option(help="clients at once")] = 1,
    out: OutOption = None,
    route: RouteOption = None,
) -> None:
    """Measure latency and tokens per second of a server, and write benchmark.json."""
    from labkit.benchmark import benchmark
    from labkit.endpoint import read_health
    from labkit.evaluation.cases import load_cases

    device = read_health(base_url).get("device", "unknown")
    pack = _pack(out, route)
    prompts = [case.full_prompt() for case in load_cases()]
    figures = benchmark(base_url, prompts, requests, concurrency, route=pack.route, device=device)
    pack.write_json("benchmark.json", figures, "13.4")
    _print_json({key: value for key, value in figures.items() if key != "rows"})


@app.command()
def stop(
    port: PortOption = 8000,
    hourly: Annotated[float, typer.Option(help="what the machine costs an hour, in US dollars")] = 0.0,
    out: OutOption = None,
    route: RouteOption = None,
) -> None:
    """Stop the server on a port, wait until the port is closed, and write shutdown_proof.json."""
    from labkit.serving.shutdown import stop_server

    pack = _pack(out, route)  # before the stop: a pack of another route must not cost the proof
    proof = stop_server(port, hourly)
    pack.write_json("shutdown_proof.json", proof, "13.4")
    _print_json(proof)


@app.command()
def decide(
    evidence: EvidenceOption = None,
    route: RouteOption = None,
    model: ModelOption = "mini-instruct",
    project: Annotated[Path | None, typer.Option(help="JSON file with the project (default: the chapter's)")] = None,
) -> None:
    """Write the model, runtime and route decisions for a project."""
    from labkit.decisions import example_project, load_project, write_decisions

    wanted = load_project(project) if project else None
    pack = _pack(evidence, route or (wanted.available_route if wanted else None))
    write_decisions(pack, wanted or example_project(pack.route), model)
    print("wrote model_decision.md, model_runtime_decision.json, open_llm_runbook.json, open_weight_route.json")


@app.command()
def release(
    evidence: EvidenceOption = None,
    route: RouteOption = None,
    port: PortOption = 8000,
    drill: Annotated[bool, typer.Option(help="provoke the two failures for real (about half a minute)")] = True,
) -> None:
    """Write the contract, the failure drill, the release gates and the runbook; the server must be running."""
    from labkit.release import (
        model_path_drill,
        port_taken_drill,
        running_contract,
        write_contract,
        write_drill,
        write_gates,
        write_readme,
    )
    from labkit.serving.process import free_port

    contract = running_contract(port)
    pack = _pack(evidence, route)
    write_contract(pack, contract)
    if drill:
        write_drill(pack, [port_taken_drill(free_port()), model_path_drill(free_port())])
    write_gates(pack)
    write_readme(pack, contract)
    print("wrote service_contract.json, failure_drill.json, release_gates.md and README.md")


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
        _print_json(found.as_dict())
    else:
        from labkit.report import print_verification

        print_verification(found)
    raise typer.Exit(found.exit_code)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="the evidence pack")]) -> None:
    """Write report.html into a pack: claims, artifacts, plots, in one file without a network."""
    from labkit.report import write_report

    print(write_report(folder))


@app.command()
def run(
    route: Annotated[str, typer.Option(help="local_cpu, free_colab or rented_gpu")] = "local_cpu",
    lesson: Annotated[str | None, typer.Option(help="only this lesson, for example 13.2")] = None,
    evidence: EvidenceOption = None,
) -> None:
    """Run the notebooks in order on a route, keep the executed copies, then verify the pack."""
    from labkit.report import print_verification, write_report
    from labkit.verification import verify as read_back
    from labkit.workbook import RunDisplay, run_workbook

    with RunDisplay() as display:
        done = run_workbook(route, str(evidence or ""), lesson, display)
    found = read_back(done.folder, lesson)
    print_verification(found)
    print(f"\npack:   {_shown(done.folder)}\nreport: {_shown(write_report(done.folder))}")
    raise typer.Exit(found.exit_code)


def _shown(path: Path) -> Path:
    here = Path.cwd()
    return path.resolve().relative_to(here) if path.resolve().is_relative_to(here) else path


@app.command()
def models(family: Annotated[str, typer.Option(help="only this family, for example Qwen")] = "") -> None:
    """List the models the workbook knows, with licence, sizes and the age of each fact."""
    from labkit.landscape.models import model_table
    from labkit.report import print_models

    print_models(model_table(family))


@app.command()
def memory(
    model: Annotated[str, typer.Argument(help="a model of the landscape, for example Qwen/Qwen2.5-7B-Instruct")],
    quant: Annotated[str, typer.Option(help="number format, for example bf16, int8, nf4, Q4_K_M")] = "bf16",
    context: Annotated[int, typer.Option(help="tokens held at once, prompt and answer")] = 4096,
    batch: Annotated[int, typer.Option(help="sequences at once")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Estimate memory before downloading: weights, KV cache and overhead, in GB and GiB."""
    from labkit.landscape.memory import memory_estimate

    estimate = memory_estimate(model, quant, context, batch)
    if as_json:
        _print_json(estimate.as_dict())
    else:
        print(estimate.as_text(), end="")


if __name__ == "__main__":
    main()
