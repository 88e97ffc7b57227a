"""What a number format costs and saves: one model in many formats on this machine, one row for each.

Every format is measured in a process of its own, so that its memory is its own. All score the same held-out chats,
teacher-forced: the model is given the right answer token by token and says how likely it thought each. So the formats
are compared on equal contexts, whatever they would have written themselves (labkit.adaptation.format_process).
"""

import csv
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from labkit.errors import LabError
from labkit.evidence import read_csv, write_atomically
from labkit.landscape.models import EMBEDDED, Model, find_model, with_config
from labkit.landscape.quantization import find_quantization
from labkit.landscape.weights import weight_bytes
from labkit.layout import DATA, MODELS, ROOT, without_paths

HELD_OUT = DATA / "corpus" / "held_out_cases.csv"
CHATS, REPEATS, NEW_TOKENS = 20, 5, 32
REFERENCE = "float32"
PROCESS = "labkit.adaptation.format_process"


@dataclass(frozen=True)
class Format:
    """A format that can be measured: what runs it, its dtype there, and its name in the table of `labkit memory`."""

    name: str
    backend: str
    dtype: str
    landscape: str = ""


# ONNX has no row in the table: its builder's files hold more than the weights' bits tell.
FORMATS = {
    row.name: row
    for row in (
        Format(REFERENCE, "transformers", "float32", "fp32"),
        Format("bfloat16", "transformers", "bfloat16", "bf16"),
        Format("int8", "transformers", "int8", "int8"),
        Format("nf4", "transformers", "nf4", "nf4"),
        Format("nf4-dq", "transformers", "nf4-dq", "nf4-dq"),
        Format("onnx-int8", "onnx", "int8"),
        Format("onnx-int4", "onnx", "int4"),
        Format("gguf-q8_0", "llama.cpp", "Q8_0", "Q8_0"),
        Format("gguf-q4_k_m", "llama.cpp", "Q4_K_M", "Q4_K_M"),
    )
}


@dataclass(frozen=True)
class FormatRow:
    """One format, measured. Where it was not run, `not_run` says why and every figure is None.

    `size_bytes` is of the weights, `size_of` says which: in memory as loaded, or the file. `predicted_bytes` is what
    `labkit memory` computes. `peak_bytes` is the most memory the process held (of the GPU on CUDA), `before_bytes` what
    it held before the model was loaded: Python and the libraries. Speed is that of one answer at a time,
    `first_token_seconds` includes reading the prompt; both are medians of repeats after a warm-up. `cores` is the
    processor time of the process meanwhile, by the time that passed.
    `perplexity` is exp of the mean negative log-likelihood, in nats, of `scored_tokens` tokens of held-out answers;
    `kl` the mean of KL(float32 || format) in nats over the same places, and `top1_agreement` the share of them where
    the likeliest token is the same. float32 is compared with itself: 0 and 1.
    """

    format: str
    backend: str
    dtype: str
    device: str = ""
    size_bytes: int | None = None
    size_of: str = ""
    predicted_bytes: int | None = None
    peak_bytes: int | None = None
    before_bytes: int | None = None
    tokens_per_second: float | None = None
    first_token_seconds: float | None = None
    cores: float | None = None
    scored_tokens: int | None = None
    perplexity: float | None = None
    kl: float | None = None
    top1_agreement: float | None = None
    not_run: str = ""

    @property
    def own_peak_bytes(self) -> int | None:
        """What the model added to the process: the peak without what was there before."""
        return None if self.peak_bytes is None or self.before_bytes is None else self.peak_bytes - self.before_bytes


def measure_formats(
    model: str = EMBEDDED,
    formats: Sequence[str] = tuple(FORMATS),
    device: str = "auto",
    held_out: Path = HELD_OUT,
    chats: int = CHATS,
    repeats: int = REPEATS,
    told: Callable[[str], None] = lambda name: None,
) -> list[FormatRow]:
    """A row for float32, with which the others are compared, and for each of `formats`, in that order.

    `held_out` is a CSV with the columns prompt and expected_behavior, the answer; `chats` of it, spread evenly, are
    scored. `told` hears the name of each format before it is measured. A package or a device that a format needs and
    lacks is told in its row. Raises LabError for an unknown format, a model that is none, or a bad CSV.
    """
    wanted = list(dict.fromkeys([REFERENCE, *(find_format(name).name for name in formats)]))
    for name, value in (("chats", chats), ("repeats", repeats)):
        if value < 1:
            raise LabError(f"{name} is {value}", f"give --{name} as a whole number of at least 1")
    pairs = held_out_chats(held_out, chats)
    rows = []
    with tempfile.TemporaryDirectory(prefix="labkit-formats-") as folder:
        for name in wanted:
            told(name)
            job = {"model": model, "device": device, "repeats": repeats, "chats": pairs, "folder": folder}
            rows.append(_measure(FORMATS[name], job))
            if name == REFERENCE and rows[0].not_run:
                raise LabError(f"float32, the reference, could not be measured: {rows[0].not_run}", "mend that first")
    return [replace(row, predicted_bytes=predicted_bytes(model, FORMATS[row.format])) for row in rows]


def find_format(name: str) -> Format:
    """The format called `name`, in any case. Raises LabError naming the known ones."""
    found = FORMATS.get(name.strip().lower())
    if found is None:
        raise LabError(f"there is no format called {name!r}", f"choose from {', '.join(FORMATS)}")
    return found


def held_out_chats(path: Path, count: int) -> list[tuple[str, str]]:
    """`count` pairs of prompt and answer, spread evenly over the file. Raises LabError for a CSV without them."""
    step = "give a CSV such as data/corpus/held_out_cases.csv"
    if not path.is_file():
        raise LabError(f"there is no file {path.name}", step)
    rows = read_csv(path)
    if not rows or not {"prompt", "expected_behavior"} <= set(rows[0]):
        what = f"{path.name} holds no chats: it needs rows, and the columns prompt and expected_behavior"
        raise LabError(what, step)
    pairs = [(row["prompt"], row["expected_behavior"]) for row in rows if row["prompt"] and row["expected_behavior"]]
    count = min(count, len(pairs))
    return [pairs[at * len(pairs) // count] for at in range(count)]


def _measure(form: Format, job: dict) -> FormatRow:
    """The row that the format's own process makes, or why there is none. GGUF files are written in another before it,
    because to convert a model takes more memory than to run it."""
    row = FormatRow(form.name, form.backend, form.dtype)
    job = {**job, "format": form.name, "backend": form.backend, "dtype": form.dtype}
    if form.backend == "llama.cpp" and "not_run" in (written := _in_a_process({**job, "task": "write"})):
        return replace(row, **written)
    return replace(row, **_in_a_process({**job, "task": "measure"}))


def _in_a_process(job: dict) -> dict:
    """What labkit.adaptation.format_process says to `job`; with a key not_run where it could not be done."""
    answer = Path(job["folder"]) / f"{job['format']}-{job['task']}.json"
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", PROCESS],
        input=json.dumps({**job, "answer": str(answer)}),
        text=True,
        errors="replace",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
        check=False,
    )
    if answer.is_file():
        return json.loads(answer.read_text(encoding="utf-8"))
    last = next(iter(done.stderr.strip().splitlines()[-1:]), "it says nothing")
    return {"not_run": without_paths(f"its process ended with code {done.returncode}: {last}")}


def predicted_bytes(model: str, form: Format) -> int | None:
    """Bytes of the weights by the formula of `labkit memory`; None where it does not know the format or the model."""
    row = _dimensions(model)
    if row is None or not form.landscape:
        return None
    size, _ = weight_bytes(row, find_quantization(form.landscape))
    return size


def _dimensions(model: str) -> Model | None:
    """The sizes of a folder's own config.json, else of the table's row."""
    folder = MODELS / EMBEDDED if model == EMBEDDED else Path(model).expanduser()
    blank = Model(folder.name, "", "", "dense", "", "", "")
    try:
        return with_config(blank, folder / "config.json") if folder.is_dir() else find_model(model)
    except LabError:
        return None


def write_rows(rows: Sequence[FormatRow], path: Path) -> None:
    """The rows as CSV, the fields of FormatRow as columns; a figure that was not measured is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(FormatRow)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(_cells(rows))
    write_atomically(path, text.getvalue().encode())


def _cells(rows: Sequence[FormatRow]) -> Iterator[dict[str, object]]:
    for row in rows:
        yield {name: "" if value is None else value for name, value in asdict(row).items()}
