"""The command quantize: what each number format costs and saves."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from labkit.cli.app import MODEL_HELP, DeviceOption, JsonOption, app, print_json


@app.command()
def quantize(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)] = "mini-instruct",
    formats: Annotated[str, typer.Option(help="some of those that `--formats help` lists, with commas")] = "all",
    device: DeviceOption = "auto",
    chats: Annotated[int, typer.Option(help="held-out chats to score")] = 20,
    repeats: Annotated[int, typer.Option(help="answers whose speed is measured, after one that warms up")] = 5,
    held_out: Annotated[Path | None, typer.Option(help="CSV with the columns prompt and expected_behavior")] = None,
    as_json: JsonOption = False,
    out: Annotated[Path | None, typer.Option("--out", help="also write the rows to this CSV file")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="also draw them into this PNG file")] = None,
) -> None:
    """Measure a model in many number formats: size, peak memory, speed, and how far it moves from float32."""
    from dataclasses import asdict

    from labkit.adaptation.quantization import FORMATS, HELD_OUT, find_format, measure_formats, write_rows
    from labkit.evidence import recorded, write_atomically
    from labkit.report.quantization import print_formats

    if formats == "help":
        print("\n".join(FORMATS))
        return
    wanted = list(FORMATS) if formats == "all" else [find_format(name).name for name in formats.split(",")]

    def told(name: str) -> None:
        print(f"measuring {name}", file=sys.stderr, flush=True)

    rows = measure_formats(model, wanted, device, held_out or HELD_OUT, chats, repeats, told)
    if as_json:
        print_json([asdict(row) for row in rows])
    else:
        print_formats(rows)
    if out:  # after the table: a file that cannot be written must not cost what was measured
        with recorded(out, "13.6"):
            write_rows(rows, out)
    if plot:
        from labkit.plots import quantization_plot

        with recorded(plot, "13.6"):
            write_atomically(plot, quantization_plot(rows, Path(model).name)._repr_png_())
