"""Number formats in the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from labkit.adaptation.quantization import FormatRow
from labkit.report.tables import plain_table, wrapping_table

NOTES = (
    "MB, what `labkit memory` calculates for them (calc.), and the peak of memory are in 10^6 bytes; the first token "
    "in ms. KL and top-1 are against float32 on the same tokens; judge a format by them, not by perplexity, which may "
    "fall by chance. The peak is that of the process without what Python and the libraries take. What is calculated "
    "counts weights that a format leaves alone in 16 bit: on a CPU bitsandbytes keeps them in 32. A size is not bits "
    "/ 32 of float32's: scales come on top, embeddings and norms stay wider, and a graph may hold a tied embedding "
    "twice. Cores is the processor's time by the time that passed, while it answers."
)


def print_formats(rows: Sequence[FormatRow], console: Console | None = None) -> None:
    """A line for each format that was run, and why the others were not."""
    console = console or Console(highlight=False)
    table = plain_table("format", "MB", "x fp32", "calc.", "peak", "tok/s", "first", "cores", "perpl.", "KL", "top-1")
    for row in rows:
        if not row.not_run:
            table.add_row(*map(Text, _cells(row, rows[0].size_bytes)))
    console.print(table)
    scored = next((row.scored_tokens for row in rows if row.scored_tokens), 0)
    devices = ", ".join(dict.fromkeys(row.device for row in rows if row.device))
    console.print(f"{scored} tokens of held-out answers were scored, on {devices}. {NOTES}", markup=False)
    if missed := [row for row in rows if row.not_run]:
        reasons = wrapping_table("not run", "why")
        for row in missed:
            reasons.add_row(Text(row.format), Text(row.not_run))
        console.print(reasons)


def _cells(row: FormatRow, reference: int | None) -> list[str]:
    return [
        row.format,
        _megabytes(row.size_bytes),
        f"{row.size_bytes / reference:.2f}" if reference else "",
        _megabytes(row.predicted_bytes),
        "" if row.own_peak_bytes is None else f"{row.own_peak_bytes / 1e6:,.0f}",
        f"{row.tokens_per_second:.0f}",
        f"{row.first_token_seconds * 1000:.1f}",
        "" if row.cores is None else f"{row.cores:.1f}",
        f"{row.perplexity:.2f}",
        f"{row.kl:.0e}",
        f"{row.top1_agreement:.1%}",
    ]


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.2f}" if size < 1e8 else f"{size / 1e6:,.0f}"
