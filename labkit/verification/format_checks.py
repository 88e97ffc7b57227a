"""quantization.csv and edge_formats.csv: one model in several number formats, measured. Numbers that cannot be, and
sizes that are not those of the files beside them."""

from labkit.edge.decision import label_of
from labkit.evidence import finite
from labkit.verification import decision_checks as decision
from labkit.verification import edge_checks as edge
from labkit.verification.reading import PackReader, number
from labkit.verification.verdicts import Contradiction, NotYet

QUANTIZED, EDGE_FORMATS = "quantization.csv", "edge_formats.csv"
REFERENCE = "float32"  # the format with which the others are compared
_COLUMNS = ("format", "backend", "dtype", "size_bytes", "tokens_per_second", "perplexity", "kl", "top1_agreement")
_KINDS = {"onnx": "onnx", "llama.cpp": "gguf"}
SMALLEST = 1 / 8  # bytes for a parameter: no format has less than a bit
LARGEST = 8.0
SIZE_DIGITS = 0.1  # the share by which an export made twice may differ in size


def check_formats(pack: PackReader, name: str) -> str:
    """Every format that was measured has possible numbers; float32 is itself; exports have the size of their files."""
    rows = pack.rows(name, _COLUMNS)
    measured = [row for row in rows if not (row.get("not_run") or "").strip()]
    if not measured:
        raise NotYet(f"{name}: no format was measured")
    if len({row["format"] for row in rows}) < len(rows):
        raise NotYet(f"{name} has a format twice")
    whole = next((float(row["size_bytes"]) / 4 for row in measured if row["format"] == REFERENCE), 0.0)
    for row in measured:
        _check_numbers(row, f"{name} {row['format'][:40]}", whole)
        _check_export(pack, row, name)
    decided = _parameters(pack)
    if whole and decided and not decided / 2 <= whole <= 2 * decided:
        what = f"{name} is of a model of {whole:,.0f} parameters"
        raise NotYet(f"{what}, {decision.MODEL_DECISION} is for one of {decided:,.0f}")
    return f"{len(measured)} of {len(rows)} formats measured, each with numbers that can be"


def _parameters(pack: PackReader) -> float:
    if not pack.exists(decision.MODEL_DECISION):
        return 0.0
    return 1e9 * (decision.billions(pack.fields(decision.MODEL_DECISION, ("Size",))["Size"]) or 0)


def _check_numbers(row: dict[str, str], where: str, parameters: float) -> None:
    size, speed = (number(row[key], f"{key} of {where}") for key in ("size_bytes", "tokens_per_second"))
    if not (size and speed):
        raise NotYet(f"{where}: size and speed are zero, so nothing was measured")
    perplexity, agreement, kl = (finite(row[key]) for key in ("perplexity", "top1_agreement", "kl"))
    if perplexity is not None and perplexity < 1:
        raise Contradiction(f"{where} has a perplexity of {perplexity:g}, and none is below 1")
    if agreement is not None and not 0 <= agreement <= 1:
        raise Contradiction(f"{where} agrees in {agreement:g} of 1 tokens")
    if kl is not None and (kl < -1e-6 or (row["format"] == REFERENCE and kl > 1e-9)):
        raise Contradiction(f"{where} has a KL divergence of {kl:g} from {REFERENCE}")
    if parameters and not SMALLEST * parameters <= size <= LARGEST * parameters:
        raise Contradiction(f"{where} has {size:,.0f} bytes for {parameters:,.0f} parameters")


def _check_export(pack: PackReader, row: dict[str, str], name: str) -> None:
    """The weights of an export whose card is in the pack have the size that the table says."""
    if not pack.exists(edge.REPORT) or row["backend"] not in _KINDS:
        return
    label = f"{_KINDS[row['backend']]} {row['dtype']}"
    cards = [card for card in pack.json(edge.REPORT)["exports"] if card.get("files") and label_of(card) == label]
    sizes = [sum(held["bytes"] for file, held in card["files"].items() if _is_weights(file)) for card in cards]
    if sizes and all(abs(float(row["size_bytes"]) - size) > SIZE_DIGITS * size for size in sizes):
        said = f"{name} says {row['size_bytes']} bytes for {row['format'][:40]}"
        raise Contradiction(f"{said}, {edge.REPORT} has {sizes[0]} bytes of {label}")


def _is_weights(file: str) -> bool:
    return file.endswith((".onnx", ".data", ".gguf"))
