"""Commands that ask a model in this process, or the table of models: chat, eval, compare, models."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from labkit.cli.app import (
    MODEL_HELP,
    DeviceOption,
    JsonOption,
    ModelOption,
    OutOption,
    RouteOption,
    app,
    open_pack,
    print_json,
)
from labkit.errors import LabError
from labkit.layout import display_path


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
            write_first_run(open_pack(out, route), loaded, asked, answer, _own_command())


def _own_command() -> str:
    """The command that is running, as it may stand in an artifact: folders by their last name."""
    return shlex.join(["labkit", *(display_path(Path(word)) if os.sep in word else word for word in sys.argv[1:])])


@app.command("eval")
def evaluate(
    cases: Annotated[Path | None, typer.Option(help="CSV or JSONL of cases (default: data/eval_cases.csv)")] = None,
    out: OutOption = None,
    model: Annotated[str | None, typer.Option(help=f"{MODEL_HELP}; not together with --base-url")] = None,
    base_url: Annotated[str | None, typer.Option(help="evaluate the model behind this server instead")] = None,
    device: DeviceOption = "auto",
    max_tokens: int = 96,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.0,
    seed: Annotated[int, typer.Option(help="of the first repeat; each other has the next")] = 0,
    repeats: Annotated[int, typer.Option(help="how often each case is asked; it passes when every answer does")] = 1,
    concurrency: Annotated[
        int | None, typer.Option(help="requests at once to a server (default: 4, and 1 for a model in this process)")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the same run where it was interrupted")] = False,
    rag: Annotated[list[Path] | None, typer.Option(help="documents for the cases without a note")] = None,
    route: RouteOption = None,
) -> None:
    """Ask the fixed cases, judge each answer, and write the results and the failure table by risk."""
    from labkit.adaptation.rag import open_library
    from labkit.evaluation.cases import EVAL_CASES, load_cases
    from labkit.evaluation.resume import AnswersSoFar
    from labkit.evaluation.runner import (
        cases_with_review,
        evaluate,
        grounded_prompts,
        require_countable,
        run_id,
        write_evaluation,
    )
    from labkit.evaluation.targets import endpoint_target, model_target
    from labkit.generation import Sampling, load_chat_model
    from labkit.progress import AnswerDisplay
    from labkit.report.evaluation import print_failures
    from labkit.serving.running import recorded_model

    if model and base_url:
        raise LabError("--model and --base-url were both given", "give one of them")
    asked = load_cases(cases or EVAL_CASES)
    if base_url:
        target = endpoint_target(base_url, model=recorded_model(base_url))
    else:
        target = model_target(load_chat_model(model or "mini-instruct", device))
    at_once = target.concurrency if concurrency is None else concurrency
    require_countable(target, at_once, repeats)
    library = open_library(rag) if rag else None
    levers, prompt_of = library.as_lever() if library else None, grounded_prompts(library)
    pack = open_pack(out, route)
    asked = cases_with_review(pack, asked)
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, seed=seed)
    run = run_id(target, [(case, prompt_of(case)) for case in asked], sampling, at_once, repeats, levers)
    so_far = AnswersSoFar(pack.folder, run, resume)
    total = len(asked) * repeats
    if resume:
        print(f"run {run}: {len(so_far.held)} of {total} answers are there already", file=sys.stderr)
    with AnswerDisplay(total) as display:
        results = evaluate(target, asked, sampling, display, prompt_of, at_once, repeats, so_far)
    summary = write_evaluation(pack, results, target, sampling, levers=levers, concurrency=at_once)
    if all(result.answered for result in results):
        so_far.remove()
    print_failures(summary)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="packs, or eval_results.csv files; the first is the baseline")],
    html: Annotated[Path | None, typer.Option(help="also write this HTML file")] = None,
    as_json: JsonOption = False,
) -> None:
    """Set evaluations of the same cases side by side: fixed, broken, still failing; exit 1 when a case was broken."""
    from labkit.evaluation.compare import compare_runs, pass_rates, read_run
    from labkit.report.evaluation import print_changes, print_pass_rates
    from labkit.report.page import write_comparison

    if len(runs) < 2:
        raise LabError("there is only one run to compare", "give two or more packs, the baseline first")
    baseline, *others = read = [read_run(path) for path in runs]
    comparisons, rates = [compare_runs(baseline, other) for other in others], pass_rates(read)
    if html:
        write_comparison(comparisons, rates, html)
    if as_json:
        print_json({"comparisons": [found.as_dict() for found in comparisons], "pass_rates": rates})
    else:
        for found in comparisons:
            print_changes(found)
        print_pass_rates(rates)
    raise typer.Exit(int(any(found.ids("broken") for found in comparisons)))


@app.command()
def models(family: Annotated[str, typer.Option(help="only this family, for example Qwen")] = "") -> None:
    """List the models the workbook knows, with licence, sizes and the age of each fact."""
    from labkit.landscape.models import model_table
    from labkit.report.landscape import print_models

    print_models(model_table(family))
