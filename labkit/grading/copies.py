"""Outputs that two people cannot both have made.

Times, latencies, process numbers and a person's own notes differ between any two runs, also of one person. Where they
are the same in two packs, one file was copied. Only those values are compared, so a copy with another model name, other
line ends or a new hash in the manifest is found all the same. What is the same for everybody (a checkpoint of one seed,
a runbook made by a command) is never compared. Long lists are compared in parts too, so that a digit changed here and
there hides nothing; one that is changed in every part is not found. This flags; a person judges.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

from labkit.evidence import MANIFEST, finite
from labkit.verification import adaptation_checks as adaptation
from labkit.verification import release_checks as release
from labkit.verification import service_checks as service
from labkit.verification import training_checks as training
from labkit.verification.reading import TEXT_LIMIT, PackReader

ADAPTER_LOG = f"{adaptation.ADAPTER}training_log.csv"
OWN_NOTES = 40  # characters of different sentences; below that two people may well write the same
# Values in a part of a long list, and how many must differ for it to tell anything: of a thousand people on machines of
# one kind, who took each latency from ten that are likely, two would share one part in some 25 such classes.
PART, DIFFERENT = 8, 6
ENOUGH_TIMES = 5  # times are whole seconds, and a class begins together: with fewer two people may have the same
NOTEBOOKS = "notebooks"
EXECUTED = b'"start_time"'  # papermill writes it into each copy, so that no two executions are the same file
SHOWN = 5  # names of others that a row lists


@dataclass(frozen=True)
class Print:
    """A pack's telling values, file to digests: of all of them, then of the parts of a long list.

    Two packs of one submission are one person's, and never compared.
    """

    submission: str
    pack: str
    values: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Shared:
    """Files whose telling values this pack shares with `others`: `with_packs` are the first of them by name."""

    files: tuple[str, ...]
    with_packs: tuple[str, ...]
    others: int


def _training(pack: PackReader, name: str) -> list:
    rows = pack.rows(name, ("elapsed_seconds", "tokens_per_second"))
    return [(finite(row["elapsed_seconds"]), finite(row["tokens_per_second"])) for row in rows]


def _latencies(pack: PackReader) -> list:
    return [finite(row["latency_ms"]) for row in pack.rows(service.RESULTS, ("latency_ms",))]


def _notes(pack: PackReader) -> list:
    """The different ones: whoever notes only "right" and "wrong" does so as often as anybody with the same answers."""
    notes = {" ".join(row["notes"].split()).lower() for row in pack.rows(service.CASES, ("notes",))}
    return sorted(filter(None, notes)) if sum(map(len, notes)) >= OWN_NOTES else []


def _smoke(pack: PackReader) -> list:
    held = pack.json(service.SMOKE)
    return [held["base_url"], held["time"], finite(held["latency_ms"])]


def _benchmark(pack: PackReader) -> list:
    return [finite(row["latency_ms"]) for row in pack.json(release.BENCHMARK)["rows"]]


def _drill(pack: PackReader) -> list:
    return sorted((drill["time"], finite(drill["seconds"])) for drill in pack.json(release.DRILL)["drills"])


def _shutdown(pack: PackReader) -> list:
    held = pack.json(release.SHUTDOWN)
    return [held["pid"], held["port"], held["started"], held["stopped"]]


def _manifest(pack: PackReader) -> list:
    """The first file of each second: a step that writes many at once says no more than one."""
    first: dict[str, str] = {}
    for name, entry in sorted(pack.entries.items()):
        first.setdefault(entry["written"], name)
    return [(name, time) for time, name in first.items()] if len(first) >= ENOUGH_TIMES else []


TELLING: dict[str, Callable[[PackReader], list]] = {
    MANIFEST: _manifest,
    training.RUN_LOG: partial(_training, name=training.RUN_LOG),
    ADAPTER_LOG: partial(_training, name=ADAPTER_LOG),
    service.SMOKE: _smoke,
    service.CASES: _notes,
    service.RESULTS: _latencies,
    release.BENCHMARK: _benchmark,
    release.DRILL: _drill,
    release.SHUTDOWN: _shutdown,
}


def fingerprints(pack: PackReader) -> dict[str, tuple[str, ...]]:
    """File to the digests of its telling values; a file that is missing, blank or unreadable has none."""
    found = {}
    for name, telling in TELLING.items():
        try:
            values = telling(pack)
        except Exception:  # a stranger's file may be wrong in any way, and then it tells nothing
            continue
        if values:
            found[name] = tuple(_digest(part) for part in (values, *_parts(values)))
    for path in sorted((pack.folder / NOTEBOOKS).glob("*.ipynb")):
        content = path.read_bytes() if path.is_file() and path.stat().st_size <= TEXT_LIMIT else b""
        if EXECUTED in content:
            found[f"{NOTEBOOKS}/{path.name}"] = (hashlib.sha256(content).hexdigest(),)
    return found


def _digest(values: list) -> str:
    return hashlib.sha256(repr(values).encode("utf-8", "replace")).hexdigest()


def _parts(values: list) -> list[list]:
    parts = [values[at : at + PART] for at in range(0, len(values) - PART + 1, PART)] if len(values) > PART else []
    return [part for part in parts if len(set(map(repr, part))) >= DIFFERENT]


def shared(prints: Sequence[Print], known: Sequence[Print] = ()) -> list[tuple[Shared, ...]]:
    """For each of `prints` what it shares with a pack of another submission, or with one of the `known` packs."""
    owners: dict[tuple[str, str], dict[str, str]] = {}  # (file, digest) to the submissions that hold it, and their pack
    for one in (*prints, *known):
        for file, digests in one.values.items():
            for digest in digests:
                owners.setdefault((file, digest), {}).setdefault(one.submission, one.pack)
    return [_shared(one, owners) for one in prints]


def _shared(one: Print, owners: Mapping[tuple[str, str], Mapping[str, str]]) -> tuple[Shared, ...]:
    """Files that are shared with the same packs are told together."""
    groups: dict[tuple[tuple[str, ...], int], list[str]] = {}
    for file, digests in one.values.items():
        packs = {submission: pack for digest in digests for submission, pack in owners[file, digest].items()}
        if len(packs) > 1:
            names = islice((pack for submission, pack in packs.items() if submission != one.submission), SHOWN)
            groups.setdefault((tuple(names), len(packs) - 1), []).append(file)
    return tuple(Shared(tuple(files), names, others) for (names, others), files in groups.items())
