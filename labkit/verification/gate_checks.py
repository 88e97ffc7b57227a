"""The gates and the README repeat what other files measured: each number is compared with the file it comes from."""

import re
import shlex
from collections.abc import Callable
from urllib.parse import urlsplit

from labkit.evaluation.cases import needed_of
from labkit.evidence import finite
from labkit.verification import consistency_checks as consistency
from labkit.verification import decision_checks as decision
from labkit.verification import release_checks as release
from labkit.verification import service_checks as service
from labkit.verification.reading import PackReader, sections
from labkit.verification.timing_checks import made_again
from labkit.verification.verdicts import Contradiction, NotYet

_READY = re.compile(
    r"^(?!.*\bnot ready\b).*\b(?:no gate fails|(?:all|every) gates? pass(?:es)?|is ready|^ready)\b", re.I
)
_OPTION = re.compile(r"--(model|port|revision|backend|dtype)[ =]+(\"[^\"]*\"|'[^']*'|\S+)")
_LIMIT = re.compile(r"^- (\w{3,40}): (\d{1,15}(?:\.\d{1,6})?)\b", re.M)


def check_gates(pack: PackReader) -> str:
    """The gates repeat the evaluation, and what they say of the rest is what the rest says."""
    said = consistency.check_gate_numbers(pack)
    check_gate_facts(pack)
    return said


def check_gate_facts(pack: PackReader) -> None:
    """What the gates that labkit writes repeat of smoke test, contract, licence, drill, proof and benchmark."""
    rows = release.gate_rows(pack)
    for row in rows:
        name, read = _FACTS.get(row["gate"], ("", None))
        if read and pack.exists(name) and (odd := read(pack, row)):
            made_again(pack, name, release.GATES)
            raise Contradiction(f"{release.GATES} says {row['gate']}: {row['measured'][:60]}; {name} says {odd}")
        _check_threshold(row)
    failed = [row["gate"] for row in rows if row["status"] == "fail"]
    outside = (line for line in pack.text(release.GATES).splitlines() if not line.lstrip().startswith("|"))
    if failed and (said := next(filter(_READY.search, outside), None)):
        raise Contradiction(f"{release.GATES} says {said.strip()[:60]!r}, and its rows say that {failed[0]} fails")


def _check_threshold(row: dict[str, str]) -> None:
    said = re.search(r"at least (\d{1,6}) of (\d{1,6}) cases", row["threshold"])
    if said and row["gate"] in service.RISKS and int(said[1]) < (needed := needed_of(row["gate"], int(said[2]))):
        raise NotYet(f"{release.GATES} asks {row['gate']} for {said[1]} of {said[2]} cases, a release needs {needed}")


def _smoke(pack: PackReader, row: dict[str, str]) -> str:
    said, found = re.search(r"\bin (\d{1,9}(?:\.\d{1,6})?) ms", row["measured"]), pack.json(service.SMOKE)
    took = finite(found.get("latency_ms"))
    return f"{took:g} ms" if said and took is not None and float(said[1]) != took else ""


def _limits(pack: PackReader, row: dict[str, str]) -> str:
    held = pack.json(release.CONTRACT).get("limits") or {}
    said = {
        key: float(value) for key, value in re.findall(r"\b([a-z_]{3,40}) (\d{1,15}(?:\.\d{1,6})?)", row["measured"])
    }
    odd = [key for key, value in said.items() if key in held and f"{value:g}" != f"{float(held[key]):g}"]
    return ", ".join(f"{key} {held[key]}" for key in odd)


def _licence(pack: PackReader, row: dict[str, str]) -> str:
    known = pack.fields(decision.MODEL_DECISION, ()).get("Licence", "")
    return known if row["status"] == "pass" and " ".join(known.split()) != row["measured"].replace("\\|", "|") else ""


def _drill(pack: PackReader, row: dict[str, str]) -> str:
    drills = pack.json(release.DRILL).get("drills") or []
    good = sum(drill.get("recovered_ok") is True for drill in drills)
    said = re.search(r"(\d{1,4}) of (\d{1,4}) recovered", row["measured"])
    odd = said and (int(said[1]), int(said[2])) != (good, len(drills))
    return f"{good} of {len(drills)}" if odd or (row["status"] == "pass" and good < len(drills)) else ""


def _stopped(pack: PackReader, row: dict[str, str]) -> str:
    proof = pack.json(release.SHUTDOWN)
    gone = proof.get("process_gone") is True and proof.get("port_closed") is True
    return "not proved" if row["status"] == "pass" and not gone and release.SHUTDOWN in row["evidence"] else ""


def _latency(pack: PackReader, row: dict[str, str]) -> str:
    said = re.search(r"(\d{1,9}) ms over (\d{1,9}) requests, (\d{1,6}) at a time", row["measured"])
    worst = max(pack.json(release.BENCHMARK)["levels"], key=lambda level: level["p95_ms"])
    found = (f"{worst['p95_ms']:.0f}", str(worst["requests"] - worst["errors"]), str(worst["concurrency"]))
    return "{} ms over {}, {} at a time".format(*found) if said and said.groups() != found else ""


_FACTS: dict[str, tuple[str, Callable[[PackReader, dict[str, str]], str]]] = {
    "smoke test": (service.SMOKE, _smoke),
    "contract limits": (release.CONTRACT, _limits),
    "licence known": (decision.MODEL_DECISION, _licence),
    "failure drill": (release.DRILL, _drill),
    "shutdown path": (release.SHUTDOWN, _stopped),
    "p95 latency": (release.BENCHMARK, _latency),
}


def check_readme(pack: PackReader) -> str:
    """The README has its sections, and describes the service of the contract."""
    said = release.check_readme(pack)
    check_readme_facts(pack)
    return said


def check_readme_facts(pack: PackReader) -> None:
    """What README.md starts, and the limits that it names, are the contract's; a service with keys says so."""
    if not pack.exists(release.CONTRACT):
        return
    contract, said = pack.json(release.CONTRACT), sections(pack.text(release.README))
    port = urlsplit(str((contract.get("endpoint") or {}).get("base_url"))).port
    held = {"port": port} | {key: contract.get(key) for key in ("model", "revision", "backend", "dtype")}
    limits = contract.get("limits") or {}
    pairs = [(key, value.strip("\"'"), held[key]) for key, value in _OPTION.findall(said.get("Start", ""))]
    pairs += [(key, value, limits[key]) for key, value in _LIMIT.findall(said.get("Known limits", "")) if key in limits]
    for key, value, known in pairs:
        if value not in (str(known), shlex.quote(str(known))) and finite(value) != (finite(known) or known):
            made_again(pack, release.CONTRACT, release.README)
            raise Contradiction(f"{release.README} says {key} {value[:40]}, {release.CONTRACT} says {known}")
    keys = str(contract.get("authorization") or "none").lower()
    if "serve" in said.get("Start", "") and keys.startswith("authorization:") and "key" not in said["Start"].lower():
        raise NotYet(f"{release.README} starts the service without a key, and {release.CONTRACT} asks for one")
