"""The formats that weights are stored in: bits per weight, and which weights they apply to."""

from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import ClassVar

from labkit.errors import LabError
from labkit.landscape.tables import LANDSCAPE, read_table

SCOPES = ("all", "linears", "groups", "experts", "gguf")


@dataclass(frozen=True)
class Quantization:
    """A weight format. `bits_per_weight` counts scales and zero points.

    `scope` says which weights have them; the others stay in 16 bit.
    all: every weight. linears: all but embedding, head, norms and an image encoder. groups: the same, but of a hybrid
    layout the MLP alone. experts: the experts of a mixture. gguf: the block type that a GGUF file has most of; which
    tensors have another is in gguf_files.py. `copies_tied_head`: a head shared with the embedding is stored again.
    """

    expires_days: ClassVar[int | None] = None

    format: str
    bits_per_weight: float
    scope: str
    basis: str
    source_url: str
    aliases: tuple[str, ...] = ()
    copies_tied_head: bool = False
    notes: str = ""
    seen: date | None = None

    def __post_init__(self):
        if self.scope not in SCOPES:
            raise ValueError(f"scope is {self.scope!r}, not one of {', '.join(SCOPES)}")
        if self.bits_per_weight == 0:
            raise ValueError("bits_per_weight is 0")

    @property
    def names(self) -> tuple[str, ...]:
        return (self.format.lower(), *(alias.lower() for alias in self.aliases))


@cache
def load_quantizations(path: Path = LANDSCAPE / "quantization.csv") -> tuple[Quantization, ...]:
    return read_table(path, Quantization, key="format")


def find_quantization(name: str) -> Quantization:
    """The format called `name`, in any case. Raises LabError naming the known ones."""
    rows = load_quantizations()
    for row in rows:
        if name.strip().lower() in row.names:
            return row
    raise LabError(f"there is no format called {name!r}", f"choose one of {', '.join(row.format for row in rows)}")


def split_format(name: str) -> tuple[str, str]:
    """A checkpoint's name without the format that it ends in, and that format ("" for none): Qwen3-8B, AWQ.

    Repositories of quantized weights are named after the model they hold; its sizes are the same.
    """
    endings = ((ending, row.format) for row in load_quantizations() for ending in row.names)
    for ending, form in sorted(endings, key=lambda pair: -len(pair[0])):
        if name.strip().lower().endswith(f"-{ending}"):
            return name.strip()[: -len(ending) - 1], form
    return name, ""
