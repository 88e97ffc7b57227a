"""Commands that ask a model in this process: chat, eval, compare."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from labkit.cli.app import (
    MODEL_HELP,
    BackendOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    OutOption,
    RouteOption,
    app,
    open_pack,
    print_json,
)
from labkit.errors import LabError
from labkit.layout import EMBEDDED, display_path

PROMPT_HELP = "a system prompt and examples around each question: a name in data/prompts, or a YAML file"


@app.command()
def chat(
    prompt: Annotated[str | None, typer.Option(help="one question; else one is read from each line")] = None,
    model: ModelOption = "mini-instruct",
    device: DeviceOption = "auto",
    backend: BackendOption = None,
    dtype: DtypeOption = "auto",
    adapter: Annotated[str, typer.Option(help="the folder of a LoRA adapter of this model")] = "",
    note: Annotated[str | None, typer.Option(help="policy note to put before it, such as POL-01")] = None,
    prompt_variant: Annotated[str | None, typer.Option(help=PROMPT_HELP)] = None,
    max_tokens: Annotated[int, typer.Option(help="longest answer, in tokens")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.0,
    seed: Annotated[int, typer.Option(help="the same seed draws the same answer; greedy needs none")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="also write first_run.md into this pack")] = None,
    route: RouteOption = None,
) -> None:
    """Ask the model a question; with --out, keep the first run as evidence."""
    from labkit.adaptation.notes import find_note, with_note
    from labkit.adaptation.prompts import find_prompt
    from labkit.generation import Sampling, load_chat_model, write_first_run

    if prompt is not None and not prompt.strip():
        raise LabError("the prompt is empty", "give --prompt a question, or leave it out and write one on each line")
    found = find_note(note) if note else None
    variant = find_prompt(prompt_variant) if prompt_variant else None
    loaded = load_chat_model(model, device, dtype, backend, adapter=adapter)
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, seed=seed)
    for question in [prompt] if prompt is not None else (line.strip() for line in sys.stdin):
        if not question:
            continue
        asked = with_note(question, found) if found else question
        answer = None
        messages = variant.messages_for(asked) if variant else [{"role": "user", "content": asked}]
        for piece in loaded.stream(messages, sampling):
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
    backend: BackendOption = None,
    dtype: DtypeOption = "auto",
    adapter: Annotated[
        str, typer.Option(help="the folder of a LoRA adapter; with --base-url the name of one served there")
    ] = "",
    max_tokens: Annotated[int, typer.Option(help="longest answer, in tokens")] = 96,
    temperature: Annotated[float, typer.Option(help="0 is greedy")] = 0.0,
    top_p: Annotated[float, typer.Option(help="sample from the likeliest tokens of this probability in all")] = 1.0,
    seed: Annotated[int, typer.Option(help="of the first repeat; each other has the next")] = 0,
    repeats: Annotated[int, typer.Option(help="how often each case is asked; it passes when every answer does")] = 1,
    concurrency: Annotated[
        int | None, typer.Option(help="cases at once (default: 4 of a server, 8 of a model in this process)")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the same run where it was interrupted")] = False,
    rag: Annotated[list[Path] | None, typer.Option(help="documents for the cases without a note")] = None,
    prompt: Annotated[str | None, typer.Option(help=PROMPT_HELP)] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="decode within its schema whatever must be a JSON form")
    ] = False,
    judge: Annotated[str | None, typer.Option(help="a server whose model grades each answer as well")] = None,
    judge_model: Annotated[str | None, typer.Option(help="the judge's model (default: its server's first)")] = None,
    judge_prompt: Annotated[
        Path | None, typer.Option(help="YAML file (default: data/judges/pass_or_fail.yaml)")
    ] = None,
    export: Annotated[
        str | None, typer.Option(help="lm-eval or promptfoo: run nothing, write its files for the cases to --out")
    ] = None,
    route: RouteOption = None,
) -> None:
    """Ask the fixed cases, judge each answer, and write the results and the failure table by risk."""
    from labkit.cli import evaluating
    from labkit.decoding import Sampling
    from labkit.evaluation.cases import EVAL_CASES, load_cases
    from labkit.evaluation.runner import require_countable
    from labkit.report.evaluation import print_failures

    asked = load_cases(cases or EVAL_CASES)
    levers = evaluating.levers(rag, prompt, schema)
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, seed=seed, top_p=top_p)
    if export:
        evaluating.export_cases(export, out, asked, levers, sampling, base_url, model)
        return
    evaluating.require_one_place(base_url, model=model, device=device, backend=backend, dtype=dtype)
    second = evaluating.judge(judge, judge_model, judge_prompt)
    if base_url is not None:
        target = evaluating.served(base_url, adapter)
    else:
        target = evaluating.loaded(model or EMBEDDED, device, dtype, backend, adapter)
    at_once = target.concurrency if concurrency is None else concurrency
    require_countable(target, at_once, repeats)
    run = evaluating.Run(target, sampling, levers, at_once, repeats, second)
    print_failures(evaluating.run(run, open_pack(out, route), asked, resume))


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="packs, or eval_results.csv files; the first is the baseline")],
    html: Annotated[Path | None, typer.Option(help="also write this HTML file")] = None,
    plot: Annotated[Path | None, typer.Option(help="also draw the changed cases by risk into this PNG or SVG")] = None,
    as_json: JsonOption = False,
) -> None:
    """Set evaluations of the same cases side by side: fixed, broken, still failing; exit 1 when a case was broken."""
    from labkit.evaluation.compare import compare_runs, pass_rates, read_run, speeds
    from labkit.report.evaluation import print_changes, print_pass_rates, print_speeds
    from labkit.report.page import write_comparison

    if len(runs) < 2:
        raise LabError("there is only one run to compare", "give two or more packs, the baseline first")
    baseline, *others = read = [read_run(path) for path in runs]
    comparisons, rates = [compare_runs(baseline, other) for other in others], pass_rates(read)
    if html:
        write_comparison(comparisons, rates, html, speeds(read))
    if plot:
        from labkit.plots import case_changes, save_plot

        save_plot(case_changes(*comparisons), plot)
    if as_json:
        print_json(
            {"comparisons": [found.as_dict() for found in comparisons], "pass_rates": rates, "speeds": speeds(read)}
        )
    else:
        for found in comparisons:
            print_changes(found)
        print_pass_rates(rates)
        print_speeds(speeds(read))
    raise typer.Exit(int(any(found.ids("broken") for found in comparisons)))
