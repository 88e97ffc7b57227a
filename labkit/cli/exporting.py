"""Commands that take a model to the edge: export onnx, export gguf, export foundry, edge-check."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from labkit.cli.app import MODEL_HELP, app, export, print_json
from labkit.errors import LabError

ModelArgument = Annotated[str, typer.Argument(help="mini-instruct, or a folder with a transformers checkpoint")]
AdapterOption = Annotated[Path | None, typer.Option(help="folder of a LoRA adapter, merged before the conversion")]
FolderOption = Annotated[Path, typer.Option("--out", help="folder for the export and its card, empty or new")]
CasesOption = Annotated[Path | None, typer.Option(help="CSV or JSONL of cases (default: data/eval_cases.csv)")]
LimitOption = Annotated[float, typer.Option(help="share of the answers that may differ from the source's")]
CheckOption = Annotated[bool, typer.Option("--check/--no-check", help="ask source and export the same cases")]


@export.command()
def onnx(
    model: ModelArgument = "mini-instruct",
    out: FolderOption = ...,
    adapter: AdapterOption = None,
    precision: Annotated[str, typer.Option(help="int4, int8, fp16 or fp32")] = "int4",
    tool: Annotated[str, typer.Option(help="builder (seconds), olive, or olive-config")] = "builder",
    cases: CasesOption = None,
    limit: LimitOption = 0.2,
    check: CheckOption = True,
) -> None:
    """Write an ONNX graph for onnxruntime-genai; exit 1 where too many answers differ from the source's."""
    from labkit.edge.convert import export_onnx, source_of

    asked = _cases(cases, limit)
    with source_of(model, adapter) as source:
        _finish(source, out, export_onnx(source, out, precision, tool, _told), asked if check else (), limit)


@export.command()
def gguf(
    model: ModelArgument = "mini-instruct",
    out: FolderOption = ...,
    adapter: AdapterOption = None,
    quant: Annotated[str, typer.Option(help="Q4_K_M, Q8_0 or F16")] = "Q4_K_M",
    cases: CasesOption = None,
    limit: LimitOption = 0.2,
    check: CheckOption = True,
) -> None:
    """Write a GGUF file for llama.cpp; exit 1 where too many answers differ from the source's."""
    from labkit.edge.convert import export_gguf, source_of

    asked = _cases(cases, limit)
    with source_of(model, adapter) as source:
        _finish(source, out, export_gguf(source, out, quant), asked if check else (), limit)


@export.command()
def foundry(
    folder: Annotated[Path, typer.Argument(help="folder that `labkit export onnx` wrote")],
    out: Annotated[Path, typer.Option("--out", help="cache folder for Foundry Local, holding PUBLISHER/NAME")],
    name: Annotated[str, typer.Option(help="the model's name there")] = "",
    publisher: Annotated[str, typer.Option(help="the folder above it")] = "labkit",
    version: Annotated[str, typer.Option(help="of this model, such as 1 or 1.2")] = "1",
    run: Annotated[bool, typer.Option("--run", help="register, load, ask and unregister it with the SDK")] = False,
) -> None:
    """Lay an ONNX export out for Foundry Local, with inference_model.json; with --run chat with it there."""
    from labkit.export.foundry import commands, inference_model, lay_out

    name = name or folder.resolve().name
    made = inference_model(folder, name, f"{name}: an ONNX export made by labkit", version)
    placed = lay_out(folder, out, made, publisher)
    print(f"saved {publisher}/{placed.name}, with the roles {', '.join(made['PromptTemplate'])}")
    for title, lines in commands(out, name).items():
        print(f"{title}:", *(f"    {line}" for line in lines), sep="\n")
    if run:
        _chat_in_foundry(placed, name)


def _chat_in_foundry(placed: Path, name: str) -> None:
    from labkit.edge.checklist import QUESTION
    from labkit.edge.foundry_local import loaded_in_foundry
    from labkit.evaluation.levers import plainly
    from labkit.generation import Sampling

    with loaded_in_foundry(placed, name) as local:
        print(f"registered {local.model_id}; the local catalog lists {', '.join(local.listed)}")
        question = QUESTION[0]["content"]
        reply = local.target.ask(plainly(question), Sampling(max_tokens=64))
        print(f"> {question}\n{reply.text}")
    print(f"unregistered {local.model_id}")


def _cases(path: Path | None, limit: float) -> list:
    """The cases of the check; a limit or a file that is wrong is told before anything is converted."""
    from labkit.edge.fidelity import require_share
    from labkit.evaluation.cases import EVAL_CASES, load_cases

    require_share(limit)
    return load_cases(path or EVAL_CASES)


def _finish(source, out: Path, card, cases: list | tuple, limit: float) -> None:
    """Say what was made, and ask the cases where there are any."""
    from labkit.edge.convert import check_export

    print(f"saved {out.name}: {card.kind} {card.precision}, {card.bytes / 1e6:.2f} MB, card in export.json")
    if not cases:
        return
    found = check_export(source, out, card, cases, limit).fidelity
    print(found.sentence)
    if found.flagged:
        print(f"flagged: cases {', '.join(found.differing)}", file=sys.stderr)
        raise typer.Exit(1)


@app.command("edge-check")
def edge_check(
    folder: Annotated[Path, typer.Argument(help="folder that `labkit export` wrote")],
    source: Annotated[str, typer.Option(help=f"what it was made from: {MODEL_HELP}")] = "mini-instruct",
    adapter: AdapterOption = None,
    cases: CasesOption = None,
    limit: LimitOption = 0.2,
    generations: Annotated[int, typer.Option(help="answers over which memory is watched")] = 200,
    out: Annotated[Path | None, typer.Option("--out", help="also write the measurements to this JSON file")] = None,
    plot: Annotated[Path | None, typer.Option(help="also draw latency and memory into this PNG file")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON for a program")] = False,
) -> None:
    """Check a conversion: answers, structure, memory, latency, odd inputs; exit 1 where one item fails."""
    from labkit.edge.checklist import require_trend, run_checklist
    from labkit.edge.convert import artifact_of
    from labkit.edge.fidelity import answers
    from labkit.evidence import json_text, recorded, write_atomically
    from labkit.export.card import changed_files, read_export_card
    from labkit.generation import load_chat_model

    asked = _cases(cases, limit)
    require_trend(generations)
    if not folder.is_dir():
        raise LabError(f"there is no folder called {folder.name}", "give the one that `labkit export` wrote")
    if changed := changed_files(folder, read_export_card(folder)):
        what = f"{', '.join(changed)} of {folder.name} is not what was exported: its card has another hash"
        raise LabError(what, "make the export again")
    model = load_chat_model(str(artifact_of(folder)))
    before = answers(load_chat_model(source, "cpu", "float32", adapter=str(adapter or "")), asked)
    found = run_checklist(model, before, answers(model, asked), limit, generations)
    if out:
        with recorded(out, "13.7"):
            write_atomically(out, json_text(found.as_dict()).encode())
    if plot:
        from labkit.plots import edge_plot, save_plot

        with recorded(plot, "13.7"):
            save_plot(edge_plot(found.as_dict()), plot)
    if as_json:
        print_json(found.as_dict())
    else:
        from labkit.report.edge import print_checklist

        print_checklist(found)
    raise typer.Exit(int(not found.passed))


def _told(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
