"""Commands that change what a model can do: rag, levers."""

import re
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from labkit.cli.app import DeviceOption, JsonOption, ModelOption, OutOption, RouteOption, app, open_pack, print_json
from labkit.errors import LabError


@app.command()
def rag(
    question: Annotated[str | None, typer.Argument(help="what to answer from the documents")] = None,
    docs: Annotated[list[Path] | None, typer.Option(help="folder of documents (default: the company's notes)")] = None,
    role: Annotated[str, typer.Option(help="who asks: what this role may not read is not searched")] = "everybody",
    k: Annotated[int, typer.Option(min=1, help="passages to put before the question")] = 1,
    embeddings: Annotated[str, typer.Option(help="a sentence-transformers model to rank with, not BM25")] = "",
    measure: Annotated[Path | None, typer.Option(help="cases (CSV, JSONL): measure retrieval alone, no model")] = None,
    model: ModelOption = "mini-instruct",
    device: DeviceOption = "auto",
    max_tokens: Annotated[int, typer.Option(help="longest answer, in tokens")] = 128,
    as_json: JsonOption = False,
) -> None:
    """Answer a question from documents and show the sources, or measure how well passages are found."""
    from labkit.adaptation.rag import ground, open_library

    if (not (question or "").strip()) == (measure is None):
        raise LabError("one of a question and --measure is needed", 'labkit rag "Who carries the parcels?"')
    index = (open_library(docs, embeddings) if docs else open_library(embeddings=embeddings)).index(role)
    if measure:
        _show_retrieval(index, measure, k, as_json)
        return
    from labkit.generation import Sampling, load_chat_model
    from labkit.report.evaluation import print_sources

    found = ground(index, question, k)
    messages = [{"role": "user", "content": found.prompt}]
    answer = load_chat_model(model, device).chat(messages, Sampling(max_tokens=max_tokens)).text
    sources = found.sources(answer)
    if as_json:
        print_json({"question": question, "role": role, "answer": answer, "sources": sources})
    else:
        print_sources(answer, sources)


def _show_retrieval(index, cases: Path, k: int, as_json: bool) -> None:
    from dataclasses import asdict

    from labkit.adaptation.rag import measure_retrieval
    from labkit.evaluation.cases import load_cases
    from labkit.report.evaluation import print_retrieval

    report = measure_retrieval(index, [(case.prompt, case.cited) for case in load_cases(cases) if case.cited], k)
    if as_json:
        print_json(asdict(report))
    else:
        print_retrieval(report)


@app.command()
def levers(
    only: Annotated[list[str] | None, typer.Option(help="pull this lever (repeat it) and, once, the plain run")] = None,
    seeds: Annotated[str, typer.Option(help="seeds of the trained levers, joined by commas")] = "13,14,15",
    out: OutOption = None,
    model: ModelOption = "mini-instruct",
    device: DeviceOption = "auto",
    plot: Annotated[Path | None, typer.Option(help="also write the picture to this PNG file")] = None,
    route: RouteOption = None,
) -> None:
    """Pull each lever alone on the same cases (prompt, schema, rag, 8 and 4 bits, LoRA), and set them side by side."""
    from labkit.levers.plan import LEVERS, lever
    from labkit.levers.run import LeverTask, pull_all, with_plain
    from labkit.levers.table import write_table
    from labkit.report.levers import print_levers

    chosen = [lever(name) for name in only] if only else LEVERS
    pack = open_pack(out, route)
    told = partial(print, file=sys.stderr, flush=True)
    pull_all(pack, LeverTask(model, device), with_plain(pack, chosen, model), _seeds(seeds), told)
    table = write_table(pack)
    print_levers(table)
    if plot:
        from labkit.evidence import recorded
        from labkit.plots import lever_bars, save_plot

        with recorded(plot, "13.6"):
            save_plot(lever_bars(table), plot)


def _seeds(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", text):
        raise LabError(f"--seeds {text!r} are no seeds", "give whole numbers joined by commas, such as 13,14,15")
    return tuple(dict.fromkeys(int(seed) for seed in text.split(",")))
