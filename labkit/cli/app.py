"""The Typer application, the options that several commands share, and how they open a pack."""

import json
from pathlib import Path
from typing import Annotated

import typer

from labkit.layout import evidence_folder

app = typer.Typer(
    help="Deploy an open-weight language model, and leave evidence that a program can check.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

export = typer.Typer(
    help="Convert a checkpoint for another runtime (onnx, gguf, foundry), or an evidence pack to hand in (pack).",
    no_args_is_help=True,
)
app.add_typer(export, name="export")

DEVICE_HELP = "auto, cpu, cuda or mps; a device that is asked for by name and absent is an error"
MODEL_HELP = "mini-instruct (shipped here), a folder with a transformers checkpoint, or a hub id"
BACKEND_HELP = "what runs the model: auto, transformers, onnx or llama.cpp (a .gguf file)"
DTYPE_HELP = "auto, float32, bfloat16, float16, int8, nf4 or nf4-dq; for onnx float32, float16, int8 or int4"
PACK_HELP = "the evidence pack's folder (default: evidence/<route>)"
ROUTE_HELP = "local_cpu, free_colab or rented_gpu (default: the pack's own, else local_cpu)"

DeviceOption = Annotated[str, typer.Option("--device", help=DEVICE_HELP)]
ModelOption = Annotated[str, typer.Option("--model", help=MODEL_HELP)]
BackendOption = Annotated[str | None, typer.Option("--backend", help=BACKEND_HELP)]
DtypeOption = Annotated[str, typer.Option("--dtype", help=DTYPE_HELP)]
OutOption = Annotated[Path | None, typer.Option("--out", help=PACK_HELP)]
EvidenceOption = Annotated[Path | None, typer.Option("--evidence", help=PACK_HELP)]
RouteOption = Annotated[str | None, typer.Option("--route", help=ROUTE_HELP)]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON for a program")]
UrlOption = Annotated[str, typer.Option("--base-url", help="an OpenAI-compatible server")]
PortOption = Annotated[int, typer.Option("--port", help="TCP port")]

LOCAL_SERVER = "http://127.0.0.1:8000"


def open_pack(folder: Path | None, route: str | None):
    """The pack in `folder`, opened on `route`; without a route the pack's own, else local_cpu."""
    from labkit.evidence import MANIFEST, Pack, read_manifest
    from labkit.routes import load_route

    folder = folder or evidence_folder(route or "local_cpu")
    if route is None:
        route = read_manifest(folder)["route"] if (folder / MANIFEST).exists() else "local_cpu"
    return Pack(folder, load_route(route).route)


def print_json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
