"""How long `labkit grade` takes for a class, and how much memory: real packs, each with values and weights of its own.

    .venv/bin/python benchmarks/grading.py --packs 1000

Half of the packs are folders and half zip archives; one in a hundred is broken. They are made from one real pack by
changing what differs between two people: times, latencies, the process number, and one weight of the checkpoint, so
that no two files with measured values are alike. The class is graded by the command itself, in a process of its own.
"""

import argparse
import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import torch

from labkit.environment import environment_report
from labkit.evidence import json_text, read_json, sha256_of
from labkit.layout import REFERENCE

RUN = "openllm_gpu_training_run"
LOOK = 0.1  # seconds between two looks at the memory of the processes


def main() -> None:
    options = arguments()
    environment = environment_report("cpu")
    with tempfile.TemporaryDirectory(prefix="labkit-class-", dir=options.scratch) as scratch:
        room = Path(scratch) / "class"
        results = [measure(make_class(options.pack, room, count), options.jobs) for count in options.packs]
    for result in results:
        print(json.dumps(result))
    if options.results:
        machine = {"cpu": environment.cpu, "cores": environment.cores, "torch": environment.torch}
        made = {"date": datetime.now(UTC).date().isoformat(), **machine, "runs": results}
        options.results.write_text(json_text(made), encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packs", type=int, nargs="+", default=[100, 1000], help="sizes of the class, rising")
    parser.add_argument("--pack", type=Path, default=REFERENCE / "local_cpu", help="the real pack to start from")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--scratch", type=Path, help="where the class is made: some megabytes for each pack")
    parser.add_argument("--results", type=Path, help="a JSON file for the figures")
    return parser.parse_args()


def make_class(source: Path, room: Path, count: int) -> Path:
    """`count` submissions in `room`; those that are there already stay."""
    room.mkdir(exist_ok=True)
    for number in range(len(list(room.iterdir())), count):
        name = room / f"person_{number:04}"
        if number % 100 == 99:
            (room / f"{name.name}.zip").write_bytes(b"PK\x03\x04 broken")
            continue
        shutil.copytree(source, name)
        make_different(name, number)
        if number % 2:
            pack_up(name)
    return room


def make_different(folder: Path, number: int) -> None:
    """Change what no two people share and no other file repeats, and record the new hashes as an honest pack has them.

    What other files repeat stays (smoke test, benchmark, drills): the packs are supported, and told to share these.
    """
    edit_csv(folder / RUN / "training_log.csv", "elapsed_seconds", number)
    edit_csv(folder / "eval_results.csv", "latency_ms", number / 1000)  # so little that no case becomes too slow
    summary = read_json(folder / "eval_summary.json")
    summary.pop("speed")  # it would have to follow
    write_json(folder / "eval_summary.json", summary)
    held = torch.load(folder / RUN / "mini_gpt2_checkpoint.pt", weights_only=True)
    held["model"]["transformer.ln_f.bias"][0] = number / 1000
    torch.save(held, folder / RUN / "mini_gpt2_checkpoint.pt")
    for path in (folder / "notebooks").glob("*.ipynb"):
        path.write_text(f"{path.read_text(encoding='utf-8')}{' ' * number}\n", encoding="utf-8")
    record_again(folder, timedelta(minutes=number))


def edit_csv(path: Path, column: str, number: float) -> None:
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | {column: f"{float(row[column]) + number:.3f}"} for row in rows)


def write_json(path: Path, value: dict) -> None:
    path.write_text(json_text(value), encoding="utf-8")


def record_again(folder: Path, later: timedelta) -> None:
    manifest = read_json(folder / "manifest.json")
    for name, entry in manifest["files"].items():
        path = folder / name
        written = (datetime.fromisoformat(entry["written"]) + later).isoformat()
        entry |= {"sha256": sha256_of(path), "bytes": path.stat().st_size, "written": written}
    write_json(folder / "manifest.json", manifest)


def pack_up(folder: Path) -> None:
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, path.relative_to(folder.parent))
    shutil.rmtree(folder)


def measure(room: Path, jobs: int) -> dict[str, object]:
    """Wall and processor seconds of one `labkit grade`, and the most memory that its processes held together."""
    out = [room.parent / f"grades.{kind}" for kind in ("csv", "html")]
    command = [sys.executable, "-m", "labkit.cli", "grade", str(room), "--jobs", str(jobs)]
    command += [word for path in out for word in ("--out", str(path))]
    before, started = os.times(), time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    peak, watched = 0, psutil.Process(process.pid)
    while process.poll() is None:
        peak = max(peak, held_by(watched))
        time.sleep(LOOK)
    seconds, after = time.monotonic() - started, os.times()
    printed = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"labkit grade ended with {process.returncode}:\n{printed}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    with out[0].open(encoding="utf-8", newline="") as file:
        verdicts = [row["verdict"] for row in csv.DictReader(file)]
    return {
        "packs": len(verdicts),
        "jobs": jobs,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_mib": round(peak / 2**20),
        "html_mb": round(out[1].stat().st_size / 1e6, 2),
        "verdicts": {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))},
    }


def held_by(process: psutil.Process) -> int:
    """Proportional bytes of a process and all below it: pages that they share count once."""
    total = 0
    try:
        for member in [process, *process.children(recursive=True)]:
            total += getattr(member.memory_full_info(), "pss", 0) or member.memory_info().rss
    except psutil.NoSuchProcess:
        pass
    return total


if __name__ == "__main__":
    main()
