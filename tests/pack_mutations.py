"""Ways in which a pack is damaged or forged: bytes, structure, and facts. Each has a seed and can be repeated.

`damage` changes the bytes of one file in ways that accidents and attackers do. `FACTS` are facts that stand somewhere
else too, or follow from others: whoever changes one, and forges the hash, must be caught all the same.
"""

import csv
import io
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

from labkit.evidence import MANIFEST, sha256_of

Bytes = Callable[[bytes, random.Random], bytes]
PUMPED = (
    b" ",
    b"\n",
    b"0",
    b"|",
    b"#",
    b"-",
    b"`",
    b"a",
    b"[",
    b"{",
    b'"',
    b",",
    b":",
    b"\\",
    b"9 of ",
    b"- a: b\n",
    b"## \n",
)
PUMPED += (
    b"verdict ",
    b"```\n",
    b"step 1 ",
    b"\t",
    b"(",
    b"1,",
    b"\xe2\x80\xa8",
    b"A" * 64 + b"@",
    b"sk-",
    b"cannot prove:\n- ",
)


def pump(data: bytes, seed: random.Random, size: int = 10 * 2**20) -> bytes:
    """A run of one short text, up to ten megabytes of it, often without any end of line."""
    piece = seed.choice(PUMPED)
    length = seed.choice((1_000, 60_000, 1_000_000, size))
    at = seed.randrange(len(data) + 1)
    return data[:at] + piece * (length // len(piece)) + data[at:]


def flip(data: bytes, seed: random.Random) -> bytes:
    changed = bytearray(data or b"x")
    for _ in range(seed.choice((1, 1, 3, 30))):
        changed[seed.randrange(len(changed))] = seed.randrange(256)
    return bytes(changed)


def swap_lines(data: bytes, seed: random.Random) -> bytes:
    lines = data.split(b"\n")
    seed.shuffle(lines)
    return b"\n".join(lines)


def double_line(data: bytes, seed: random.Random) -> bytes:
    lines = data.split(b"\n")
    at = seed.randrange(len(lines))
    return b"\n".join([*lines[: at + 1], *lines[at:]])


def cut_line(data: bytes, seed: random.Random) -> bytes:
    lines = data.split(b"\n")
    del lines[seed.randrange(len(lines))]
    return b"\n".join(lines)


def other_number(data: bytes, seed: random.Random) -> bytes:
    """A digit becomes something that is a number to one program and none to another."""
    places = [at for at, byte in enumerate(data) if chr(byte).isdigit()] or [0]
    at = seed.choice(places)
    odd = (
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"1e999",
        b"-1",
        b"0x1",
        b"9" * 5_000,
        "\u0663".encode(),
        b"1_000",
        b"",
        b"null",
    )
    return data[:at] + seed.choice(odd) + data[at + 1 :]


def other_json(data: bytes, seed: random.Random) -> bytes:
    """A value somewhere in a JSON object becomes one of another type, or its key stands twice, or goes."""
    try:
        held = json.loads(data)
    except ValueError:
        return flip(data, seed)
    place = held
    while isinstance(place, dict | list) and place:
        key = seed.choice(list(place) if isinstance(place, dict) else range(len(place)))
        inside = place[key]
        if not isinstance(inside, dict | list) or not inside or seed.random() < 0.3:
            wrong = (
                None,
                [],
                {},
                "",
                -1,
                0,
                True,
                False,
                [[]],
                1e308,
                "x",
                {"a": {"b": []}},
                "_____",
                10**400,
                [inside] * 3,
            )
            place[key] = seed.choice(wrong)
            break
        place = inside
    text = json.dumps(held)
    if seed.random() < 0.2:
        text = '{"model": "first", "route": "first", ' + text[1:]
    return text.encode()


def other_csv(data: bytes, seed: random.Random) -> bytes:
    try:
        rows = list(csv.reader(io.StringIO(data.decode(), newline="")))
        row = seed.choice(rows)
        odd = ("", "nan", "inf", "-1", "=1+1", "x" * 200_000, "\x00", "true ", "'", '"', "1e5", "\u2028")
        row[seed.randrange(len(row))] = seed.choice(odd)
    except (ValueError, IndexError):
        return flip(data, seed)
    text = io.StringIO()
    csv.writer(text, lineterminator=seed.choice(("\n", "\r\n", "\r"))).writerows(rows)
    return text.getvalue().encode()


DAMAGE: dict[str, Bytes] = {
    "empty": lambda data, seed: b"",
    "cut": lambda data, seed: data[: seed.randrange(len(data) or 1)],
    "flip": flip,
    "bom": lambda data, seed: b"\xef\xbb\xbf" + data,
    "utf-16": lambda data, seed: data.decode("latin-1").encode("utf-16"),
    "latin-1": lambda data, seed: data[: len(data) // 2] + b"\xe9\xff" + data[len(data) // 2 :],
    "crlf": lambda data, seed: data.replace(b"\n", seed.choice((b"\r\n", b"\r", b"\n\n"))),
    "nul": lambda data, seed: data.replace(b" ", b"\x00", 1),
    "deep": lambda data, seed: seed.choice((b"[" * 100_000, b'{"a":' * 50_000)),
    "pump": pump,
    "swap lines": swap_lines,
    "double line": double_line,
    "cut line": cut_line,
    "number": other_number,
    "json": other_json,
    "csv": other_csv,
}


def damage(folder: Path, seed: random.Random) -> tuple[str, str]:
    """Damage one file of the pack, the manifest among them; returns the file and the kind of damage."""
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    name = seed.choice(files)
    suffix = Path(name).suffix
    kinds = [kind for kind in DAMAGE if kind not in ("json", "csv") or suffix == f".{kind}"]
    kind = seed.choice([*kinds, "name", "folder"])
    path = folder / name
    if kind == "name":  # a second file beside it, whose name is no UTF-8
        with open(os.fsencode(path.parent) + b"/\xff\xfe.csv", "wb") as file:
            file.write(b"x")
        return name, kind
    if kind == "folder":
        path.unlink()
        path.mkdir()
        return name, kind
    path.write_bytes(DAMAGE[kind](path.read_bytes(), seed))
    return name, kind


def forge_hash(folder: Path, name: str) -> None:
    """Enter the new hash and size, as somebody does who wants to be believed; a broken manifest stays as it is."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        entry = manifest["files"][name]
        entry |= {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size}
    except (ValueError, KeyError, OSError, TypeError, RecursionError):
        return
    (folder / MANIFEST).write_text(json.dumps(manifest))


def _key(name: str, *path: str) -> Callable[[Path, random.Random], str]:
    """Change the number or the text at `path` of a JSON file."""

    def change(folder: Path, seed: random.Random) -> str:
        held = json.loads((folder / name).read_text())
        place = held
        for key in path[:-1]:
            place = place[int(key) if isinstance(place, list) else key]
        old = place[path[-1]]
        place[path[-1]] = other_value(old, seed)
        (folder / name).write_text(json.dumps(held))
        return name

    return change


def other_value(old: object, seed: random.Random) -> object:
    if isinstance(old, bool):
        return not old
    if isinstance(old, int | float):
        return old + seed.choice((1, 7, 1_000, -1)) * max(1, abs(old) // 10)
    return f"{old}{seed.choice('0123456789abcdef')}"


def _cell(name: str, column: str, values: Callable[[str, random.Random], str]) -> Callable[[Path, random.Random], str]:
    def change(folder: Path, seed: random.Random) -> str:
        rows = list(csv.DictReader(io.StringIO((folder / name).read_text(), newline="")))
        row = seed.choice(rows)
        row[column] = values(row[column], seed)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        (folder / name).write_text(text.getvalue())
        return name

    return change


def _line(name: str, old: str, new: str) -> Callable[[Path, random.Random], str]:
    def change(folder: Path, seed: random.Random) -> str:
        text = (folder / name).read_text()
        assert old in text, (name, old)
        (folder / name).write_text(text.replace(old, new.format(n=seed.randrange(2, 10_000))))
        return name

    return change


def _more(text: str, seed: random.Random) -> str:
    return f"{float(text) + seed.choice((0.5, 1.0, 3.0)):.4f}"


def _other_verdict(text: str, seed: random.Random) -> str:
    return "false" if text == "true" else "true"


RUN = "openllm_gpu_training_run"
FACTS: dict[str, Callable[[Path, random.Random], str]] = {
    "route of the plan": _line("compute_route.md", "Route: local_cpu", "Route: rented_gpu"),
    "route of the first run": _line("first_run.md", "Route: local_cpu", "Route: free_colab"),
    "route of the evaluation": _key("eval_summary.json", "route"),
    "route of the runbook": _key("open_llm_runbook.json", "route"),
    "route of the benchmark": _key("benchmark.json", "route"),
    "model of the decision": _line("model_decision.md", "Model: mini-instruct", "Model: Qwen-{n}"),
    "revision of the decision": _line("model_decision.md", "Revision: 0123456789ab", "Revision: {n}"),
    "model of the smoke test": _key("api_smoke_test.json", "model"),
    "revision of the smoke test": _key("api_smoke_test.json", "revision"),
    "model of the evaluation": _key("eval_summary.json", "model"),
    "model of the contract": _key("service_contract.json", "model"),
    "revision of the first run": _line("first_run.md", "Revision: 0123456789ab", "Revision: {n}"),
    "device of the run": _line(f"{RUN}/environment_report.json", '"device": "cpu"', '"device": "cuda"'),
    "device of the trace": _line("gpu_train_log.txt", "device: cpu", "device: cuda"),
    "device of a row": _cell(f"{RUN}/training_log.csv", "device", lambda text, seed: "cuda"),
    "device of the machine": _line("environment_report.txt", "Device: cpu", "Device: cuda"),
    "device of the first run": _line("first_run.md", "Device: cpu", "Device: cuda"),
    "verdict of the run": _line(f"{RUN}/README.md", "smoke test", "CUDA acceptance"),
    "parameters": _key(f"{RUN}/environment_report.json", "parameter_count"),
    "steps": _key(f"{RUN}/environment_report.json", "steps"),
    "seed": _key(f"{RUN}/environment_report.json", "seed"),
    "a held-out loss": _cell(f"{RUN}/training_log.csv", "val_loss", _more),
    "a train loss": _cell(f"{RUN}/training_log.csv", "train_loss", _more),
    "a verdict": _cell("eval_results.csv", "pass", _other_verdict),
    "a risk": _cell("eval_results.csv", "risk", lambda text, seed: "format" if text != "format" else "safety"),
    "a check": _cell("eval_results.csv", "check", lambda text, seed: "equals"),
    "counts of a risk": _key("eval_summary.json", "by_risk", "safety", "passed"),
    "failed ids": _key("eval_summary.json", "by_risk", "safety", "failed_ids"),
    "a failure": _key("eval_summary.json", "failures", "0", "case_ids"),
    "number of cases": _key("eval_summary.json", "cases"),
    "a frozen version": _line("requirements-freeze.txt", "torch==", "torch=={n}."),
    "a version that ran": _line("environment_report.txt", "Package numpy: ", "Package numpy: {n}."),
    "tokens of the smoke test": _key("api_smoke_test.json", "usage", "total_tokens"),
    "tokens of the benchmark": _key("benchmark.json", "levels", "0", "completion_tokens"),
    "speed of the benchmark": _key("benchmark.json", "levels", "0", "tokens_per_second"),
    "p95 of the benchmark": _key("benchmark.json", "levels", "0", "p95_ms"),
    "requests of the benchmark": _key("benchmark.json", "levels", "0", "requests"),
    "claim of the benchmark": _key("benchmark.json", "claim"),
    "model of the benchmark": _key("benchmark.json", "model"),
    "a gate's status": _line("release_gates.md", "1 of 2 passed | fail", "1 of 2 passed | pass"),
    "a gate's count": _line("release_gates.md", "1 of 2 passed", "2 of 2 passed"),
    "cost": _key("shutdown_proof.json", "cost_usd"),
    "seconds": _line("shutdown_proof.json", "1800.0", "18{n}.5"),
    "time of the smoke test": _line("api_smoke_test.json", "2026-01-05", "2196-01-05"),
    "the process is gone": _key("shutdown_proof.json", "process_gone"),
    "the drill recovered": _line("failure_drill.json", '"recovered_ok": true', '"recovered_ok": false'),
    "counts of the conformance": _key("conformance.json", "counts", "supported"),
}
