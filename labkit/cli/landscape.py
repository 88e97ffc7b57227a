"""The command that lists what the workbook knows about models: models."""

from typing import Annotated

import typer

from labkit.cli.app import JsonOption, app, print_json


@app.command()
def models(
    name: Annotated[
        str, typer.Argument(help="a family, a release or words of a name: Qwen, 'Llama 3.1', 'Qwen VL'")
    ] = "",
    family: Annotated[str, typer.Option(help="the same as the argument")] = "",
    language: Annotated[str, typer.Option(help="ja: models that are made for Japanese, or whose maker lists it")] = "",
    commercial: Annotated[
        bool, typer.Option("--commercial", help="a licence that was read and allows commercial use, if with conditions")
    ] = False,
    fits: Annotated[
        float | None, typer.Option(help="GB of memory that must hold it, at 4,096 tokens in --quant")
    ] = None,
    quant: Annotated[str, typer.Option(help="format of the weights for the column of memory (default: bf16)")] = "",
    runtime: Annotated[str, typer.Option(help="a runtime that supports it, for example vllm, llama.cpp, onnx")] = "",
    modality: Annotated[str, typer.Option(help="text, code, image, video or audio")] = "",
    context: Annotated[int | None, typer.Option(help="tokens of context that it is made for, at least")] = None,
    openness: Annotated[str, typer.Option(help="full-open, permissive or open-weight")] = "",
    stale: Annotated[bool, typer.Option("--stale", help="list the facts that have expired, of every table")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the models the workbook knows, with sizes, licence and the age of each fact; filters keep what is known."""
    if stale:
        _print_stale(as_json)
        return
    from labkit.landscape.catalogue import Wish, model_records, model_table, select

    wish = Wish(name or family, language, commercial, fits, quant, runtime, modality, context, openness)
    found = select(wish)
    if as_json:
        print_json(model_records(found, quant))
        return
    from labkit.report.landscape import print_models

    print_models(model_table(found, quant))


def _print_stale(as_json: bool) -> None:
    """Expired rows are news, not an error: the exit status stays 0."""
    from labkit.landscape.staleness import stale_rows, stale_summary

    rows = stale_rows()
    if as_json:
        print_json(rows)
        return
    from labkit.report.landscape import print_stale

    print_stale(rows, stale_summary(rows))
