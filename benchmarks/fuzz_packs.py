"""Verify thousands of damaged and forged packs: nothing may crash, hang, or be believed.

    .venv/bin/python benchmarks/fuzz_packs.py --packs 10000

Three kinds in turn: a file damaged, a file damaged and its hash forged in the manifest, and a fact changed with its
hash forged. The seed of each pack is its number: with --keep FOLDER, which holds the packs that all are made from, a
finding can be made again with --first NUMBER --packs 1.
"""

import argparse
import hashlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from pack_mutations import FACTS, damage, forge_hash  # noqa: E402
from rule_packs import base_folder  # noqa: E402

from labkit.evidence import MANIFEST, same_text  # noqa: E402
from labkit.verification import Verdict, verify  # noqa: E402
from labkit.verification.reading import HAND_EDITED  # noqa: E402
from labkit.verification.rules import RULES  # noqa: E402

KINDS = ("damaged", "damaged, hash forged", "fact forged")
LIMIT_SECONDS = 1.0
ARTIFACT_OF = {file: rule.name for rule in RULES for file in rule.recorded_files}


class Bench:
    """One pack on the disk that is damaged and mended again, again and again."""

    def __init__(self, source: Path, folder: Path):
        self.folder = Path(shutil.copytree(source, folder))
        self._whole = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    def mend(self) -> None:
        for path in self.folder.rglob("*"):
            if path.is_dir() and path.relative_to(self.folder).as_posix() in self._whole:
                shutil.rmtree(path)
        for path in [p for p in self.folder.rglob("*") if p.is_file()]:
            if path.relative_to(self.folder).as_posix() not in self._whole:
                path.unlink()
        for name, data in self._whole.items():
            path = self.folder / name
            if not path.is_file() or path.stat().st_size != len(data) or path.read_bytes() != data:
                path.write_bytes(data)

    def same(self, name: str) -> bool:
        """Whether the file says what it said. Nothing vouches for the manifest's own commit, lessons and times."""
        path = self.folder / name
        data = path.read_bytes() if path.is_file() else b""
        if data == self._whole[name] or (name == MANIFEST and vouched(data) == vouched(self._whole[name])):
            return True
        return path.is_file() and same_text(path, hashlib.sha256(self._whole[name]).hexdigest())  # other line ends


def vouched(manifest: bytes) -> object:
    """The route, and the hash and size of each file; None for what is no manifest."""
    try:
        held = json.loads(manifest)
        return held["route"], {name: (entry["sha256"], entry["bytes"]) for name, entry in held["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def try_one(bench: Bench, number: int) -> tuple[str, float, str]:
    """(what was done, seconds of processor time for the verdict, what is wrong with the verdict or "")."""
    seed = random.Random(number)
    kind = KINDS[number % len(KINDS)]
    if kind == "fact forged":
        fact = seed.choice(list(FACTS))
        name = FACTS[fact](bench.folder, seed)
        what = f"{kind}: {fact}"
    else:
        name, how = damage(bench.folder, seed)
        what = f"{kind}: {how} {name}"
    if kind != "damaged":
        forge_hash(bench.folder, name)
    started = time.process_time()
    try:
        verification = verify(bench.folder)
        json.dumps(verification.as_dict(), allow_nan=False).encode()
    except BaseException as error:
        return what, time.process_time() - started, f"{type(error).__name__}: {error}"
    seconds = time.process_time() - started
    return what, seconds, _wrong(bench, kind, name, verification) or _slow(seconds)


def _slow(seconds: float) -> str:
    return f"took {seconds:.2f} s" if seconds > LIMIT_SECONDS else ""


def _wrong(bench: Bench, kind: str, name: str, verification) -> str:
    if bench.same(name) or name in HAND_EDITED:
        return ""
    believed = verification.exit_code == 0
    if kind == "fact forged":
        return "believed" if believed else ""
    if kind == "damaged":
        judged = "manifest hashes match" if name == MANIFEST else ARTIFACT_OF.get(name, "manifest hashes match")
        finding = next((f for f in verification.findings if f.name == judged), None)
        return "supported" if finding and finding.verdict is Verdict.SUPPORTED and believed else ""
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packs", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="where the undamaged packs are made, once (default: nowhere)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="labkit-fuzz-") as scratch:
        root = given.keep or Path(scratch)
        benches = [Bench(base_folder(root, name), Path(scratch) / f"{name}-work") for name in ("adapted", "healthy")]
        verify(benches[0].folder)  # the first verdict also imports torch
        return _run(benches, range(given.first, given.first + given.packs))


def _run(benches: list[Bench], numbers: range) -> int:
    tried: Counter[str] = Counter()
    found, slowest, total, started = [], (0.0, ""), 0.0, time.monotonic()
    for number in numbers:
        bench = benches[number // len(KINDS) % len(benches)]
        what, seconds, wrong = try_one(bench, number)
        bench.mend()
        tried[what.split(":")[0]] += 1
        slowest, total = max(slowest, (seconds, f"{number}, {what}")), total + seconds
        if wrong:
            found.append(f"{number}, {what}: {wrong}")
            print(found[-1], flush=True)
        if sum(tried.values()) % 1_000 == 0:
            print(f"{sum(tried.values()):,} packs, {len(found)} wrong", flush=True)
    print(f"{sum(tried.values()):,} packs ({', '.join(f'{count:,} {kind}' for kind, count in tried.items())})")
    print(f"{time.monotonic() - started:.0f} s in all, {total:.0f} s of processor time for the verdicts")
    print(f"slowest verdict: {slowest[0]:.2f} s ({slowest[1]})")
    print(f"wrong: {len(found)}")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
