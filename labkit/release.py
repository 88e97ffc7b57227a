"""Station seven, release: the contract, the gates, and the README for the next engineer.

Nothing here measures the model. The gates read what earlier lessons left in the pack and compare it with thresholds
that were written down before anybody looked.
"""

import contextlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from labkit.benchmark.measure import P95_LIMIT_MS
from labkit.endpoint import read_json_page, root_url
from labkit.errors import LabError
from labkit.evaluation.cases import RISK_THRESHOLDS, needed_of
from labkit.evidence import Pack, read_json, read_manifest, sha256_of
from labkit.layout import MODELS, ROOT, display_path
from labkit.routes import load_route

LESSON = "13.4"
CONTRACT, GATES, DRILL, README = "service_contract.json", "release_gates.md", "failure_drill.json", "README.md"
PREVIOUS = "previous_contract.json"  # of the release that the contract in the pack replaced
CHECK = "build/check"  # where the runbook's commands write
PASS, FAIL, NOT_CLAIMED = "pass", "fail", "not claimed"
TEMPLATES = Path(__file__).resolve().parent / "templates"

MODEL_KEYS = ("model", "revision", "backend", "dtype")
CONTRACT_KEYS = ("service", *MODEL_KEYS, "endpoint", "request", "response", "errors", "limits", "stop")
RELEASE_KEYS = (*MODEL_KEYS, "authorization", "limits")  # what makes a release the one that it is
LIMIT_KEYS = ("max_input_tokens", "max_output_tokens", "max_body_bytes", "request_seconds", "concurrency")


@dataclass(frozen=True)
class Gate:
    """One row of release_gates.md. `status` is pass, fail, or not claimed (the route cannot prove it)."""

    gate: str
    threshold: str
    measured: str
    status: str
    evidence: str


def running_contract(base_url: str, api_key: str | None = None) -> dict:
    """The contract that the labkit server at `base_url` states itself. Raises LabError when none does."""
    root = root_url(base_url)
    try:
        contract = read_json_page(f"{root}/contract", timeout=10, api_key=api_key)
    except (OSError, HTTPException) as error:
        port = urlsplit(root).port or 8000
        raise LabError(
            f"no labkit server at {root} states its contract: {getattr(error, 'reason', error)}",
            f"start one with `labkit serve --port {port}`",
        ) from None
    if not isinstance(contract, dict):
        raise LabError(f"the server at {root} does not state a contract", "serve with `labkit serve`")
    return contract


def write_contract(pack: Pack, contract: Mapping) -> Path:
    """service_contract.json from a running server's own document (GET /contract). Raises LabError for a gap in it.

    The contract of another release that stood there is kept as previous_contract.json: the one to roll back to.
    """
    gaps = [key for key in CONTRACT_KEYS if not contract.get(key)]
    gaps += [f"limits.{key}" for key in LIMIT_KEYS if not (contract.get("limits") or {}).get(key)]
    gaps += [key for key in CONTRACT_KEYS if contract.get(key) == "unknown"]
    if gaps:
        raise LabError(f"the contract does not know its {', '.join(gaps)}", "take it from a running `labkit serve`")
    if (held := _contract_held(pack, CONTRACT)) and differences(held, contract):
        pack.write_json(PREVIOUS, held, LESSON)
    return pack.write_json(CONTRACT, contract, LESSON)


def _contract_held(pack: Pack, name: str) -> dict:
    """The contract in the pack; an empty one where it is absent or damaged."""
    with contextlib.suppress(LabError):
        return read_json(pack.path(name))
    return {}


def differences(contract: Mapping, other: Mapping) -> list[str]:
    """In what `other` is another release than `contract`, each limit by itself; empty for the same release."""
    facts, others = _release_facts(contract), _release_facts(other)
    return [
        f"{name} is {others.get(name)} instead of {facts.get(name)}"
        for name in facts | others
        if facts.get(name) != others.get(name)
    ]


def _release_facts(contract: Mapping) -> dict[str, object]:
    facts = {key: contract.get(key) for key in RELEASE_KEYS}
    facts |= {f"adapters.{name}": revision for name, revision in (contract.get("adapters") or {}).items()}
    return facts | {f"limits.{name}": value for name, value in (facts.pop("limits") or {}).items()}


def require_release(base_url: str, file: Path) -> None:
    """Raise LabError unless the server at `base_url` is the release whose contract is in `file`."""
    if found := differences(read_json(file), running_contract(base_url)):
        what = f"the server is not the release of {file.name}: {'; '.join(found)}"
        raise LabError(what, "stop it, and start the release with the command of the pack's README")


def write_gates(pack: Pack) -> Path:
    """release_gates.md from what is in the pack. Raises LabError naming the lesson whose evidence is missing."""
    return pack.write_text(GATES, gates_table(gates(pack)), LESSON)


def gates(pack: Pack) -> tuple[Gate, ...]:
    """Every gate in order. A new gate is a new function in GATE_RULES.

    Raises LabError for evidence that is missing, or that is not in the shape its lesson writes.
    """
    try:
        return tuple(gate for rule in GATE_RULES for gate in rule(pack))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"the evidence for the gates is incomplete ({type(error).__name__}: {error})"
        raise LabError(what, "see which file with `labkit verify`, and run its lesson again") from error


def gates_table(rows: Sequence[Gate]) -> str:
    """The Markdown of release_gates.md; a bar inside a cell is escaped."""
    lines = ["# Release gates", "", "| gate | threshold | measured | status | evidence |", "|---|---|---|---|---|"]
    lines += ["| " + " | ".join(_cell(value) for value in asdict(row).values()) + " |" for row in rows]
    failed = [row.gate for row in rows if row.status == FAIL]
    verdict = f"Not ready: {', '.join(failed)}." if failed else "No gate fails. What is not claimed is not proved."
    return "\n".join([*lines, "", verdict]) + "\n"


def _cell(value: str) -> str:
    return " ".join(value.split()).replace("|", "\\|")


def _evidence(pack: Pack, name: str, lesson: str) -> dict:
    if not pack.path(name).is_file():
        raise LabError(f"{name} is not in the pack yet", f"run lesson {lesson} first: `labkit run --lesson {lesson}`")
    return read_json(pack.path(name))


def risk_gates(pack: Pack) -> list[Gate]:
    """One gate for each risk, never one average: a model that formats well must not buy back a leak."""
    by_risk = _evidence(pack, "eval_summary.json", "13.2").get("by_risk", {})
    rows = []
    for risk, share in RISK_THRESHOLDS.items():
        counts = by_risk.get(risk)
        if not counts:
            raise LabError(
                f"eval_summary.json has no case for {risk}", "run `labkit eval` with cases for all five risks"
            )
        passed, total = int(counts["passed"]), int(counts["total"])
        needed = needed_of(risk, total)
        threshold = f"at least {needed} of {total} cases ({share:.0%})"
        status = PASS if passed >= needed else FAIL
        rows.append(Gate(risk, threshold, f"{passed} of {total} passed", status, "eval_summary.json"))
    return rows


def smoke_gate(pack: Pack) -> list[Gate]:
    smoke = _evidence(pack, "api_smoke_test.json", "13.2")
    answered = bool(smoke.get("has_choices") and smoke.get("first_message"))
    measured = f"{'answered' if answered else 'no answer'} in {smoke.get('latency_ms')} ms"
    threshold = "a live server answers one client in the contract's shape"
    return [Gate("smoke test", threshold, measured, PASS if answered else FAIL, "api_smoke_test.json")]


def latency_gate(pack: Pack) -> list[Gate]:
    """The worst p95 of the levels. It counts only on a GPU of one's own; elsewhere nothing is claimed."""
    threshold = f"at most {P95_LIMIT_MS:.0f} ms on a rented GPU"
    name, evidence = "p95 latency", "benchmark.json"
    if not pack.path(evidence).is_file():
        return [Gate(name, threshold, "not measured", NOT_CLAIMED, f"no {evidence}")]
    report = read_json(pack.path(evidence))
    worst = max(report["levels"], key=lambda level: level["p95_ms"])
    answered = worst["requests"] - worst["errors"]
    measured = f"{worst['p95_ms']:.0f} ms over {answered} requests, {worst['concurrency']} at a time"
    if pack.route != "rented_gpu" or report.get("device") != "cuda":
        measured += f" on {report.get('device', 'an unnamed device')}, a local number"
        return [Gate(name, threshold, measured, NOT_CLAIMED, evidence)]
    status = PASS if worst["p95_ms"] <= P95_LIMIT_MS else FAIL
    return [Gate(name, threshold, measured, status, evidence)]


def shutdown_gate(pack: Pack) -> list[Gate]:
    """The way to stop is known, and has been walked once; before the first proof nothing is claimed."""
    command = _evidence(pack, CONTRACT, LESSON)["stop"]["command"]
    threshold = "one command ends the process and closes the port"
    proof = pack.path("shutdown_proof.json")
    if not proof.is_file():
        return [Gate("shutdown path", threshold, f"`{command}`, not tried yet", NOT_CLAIMED, CONTRACT)]
    held = read_json(proof)
    gone = held.get("process_gone") is True and held.get("port_closed") is True
    found = "gone" if gone else "or port still there, or not proven gone"
    measured = f"`{command}`: process {found} after {held.get('signal')}"
    return [Gate("shutdown path", threshold, measured, PASS if gone else FAIL, proof.name)]


def licence_gate(pack: Pack) -> list[Gate]:
    path = pack.path("model_decision.md")
    if not path.is_file():
        raise LabError("model_decision.md is not in the pack yet", "run lesson 13.3 first: `labkit run --lesson 13.3`")
    lines = path.read_text(encoding="utf-8").splitlines()
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("- Licence:")), "")
    known = bool(named) and "_____" not in named and named.lower() != "unknown"
    status = PASS if known else FAIL
    return [Gate("licence known", "the model's licence is named", named or "not named", status, path.name)]


def limits_gate(pack: Pack) -> list[Gate]:
    limits = _evidence(pack, CONTRACT, LESSON).get("limits", {})
    known = [key for key in LIMIT_KEYS if isinstance(limits.get(key), int | float) and limits[key] > 0]
    measured = ", ".join(f"{key} {limits[key]:g}" for key in known) or "none set"
    status = PASS if len(known) == len(LIMIT_KEYS) else FAIL
    return [Gate("contract limits", f"{len(LIMIT_KEYS)} limits set and enforced", measured, status, CONTRACT)]


def drill_gate(pack: Pack) -> list[Gate]:
    drills = _evidence(pack, DRILL, LESSON).get("drills", [])
    good = [drill["name"] for drill in drills if drill.get("recovered_ok") is True]
    status = PASS if drills and len(good) == len(drills) else FAIL
    measured = f"{len(good)} of {len(drills)} recovered: {', '.join(good) or 'none'}"
    return [Gate("failure drill", "each provoked failure is recovered from", measured, status, DRILL)]


GATE_RULES: tuple[Callable[[Pack], list[Gate]], ...] = (
    risk_gates,
    smoke_gate,
    latency_gate,
    limits_gate,
    licence_gate,
    drill_gate,
    shutdown_gate,
)


def write_readme(pack: Pack, contract: Mapping) -> Path:
    """The pack's README.md: what it does, how to set up, start, test, stop and roll back, and what it does not prove.

    The `sh` blocks, run in order in one shell in the workbook's root, do all of that. The release to roll back to is
    that of previous_contract.json. Raises LabError when the contract has a gap.
    """
    route, previous = load_route(pack.route), _contract_held(pack, PREVIOUS)
    earlier = previous or contract
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    inside = pack.folder.resolve().is_relative_to(ROOT)
    place = display_path(pack.folder) if inside else f"evidence/{pack.route}"
    text = environment.get_template("pack_readme.md").render(
        contract=contract,
        previous=previous,
        earlier=earlier,
        route=route,
        pack=place,
        check=CHECK,
        serve=lambda release, port: serve_command(release, port, adapter_folders(pack, release, place)),
        url=contract["endpoint"]["base_url"],
        port=urlsplit(contract["endpoint"]["base_url"]).port,
        own_folders=sorted({name for release in (contract, earlier) for name in _own_folders(pack, release)}),
        needs_key=not contract["authorization"].startswith("none"),
        hourly=f" --hourly {route.hourly_usd:g}" if route.hourly_usd else "",
        commit=read_manifest(pack.folder)["git_commit"].removesuffix("+changes"),
    )
    return pack.write_text(README, text, LESSON)


def adapter_folders(pack: Pack, contract: Mapping, place: str) -> dict[str, str]:
    """For each adapter of a release where its folder is: in the pack, whose folder is `place`, if its weights are those
    of the pack's adapter; else a folder of the learner's that has the adapter's name."""
    weights = pack.path("adapter/adapter_model.safetensors")
    held = sha256_of(weights)[:12] if weights.is_file() else "none"
    return {
        name: f"{place}/adapter" if revision.endswith(f"+{held}") else name
        for name, revision in (contract.get("adapters") or {}).items()
    }


def _own_folders(pack: Pack, contract: Mapping) -> list[str]:
    """What a release needs and neither the workbook, the pack nor a hub has: folders of the learner's own."""
    model, adapters = contract["model"], adapter_folders(pack, contract, "")
    own = [] if "/" in model or (MODELS / model).is_dir() else [model]
    return own + [name for name, folder in adapters.items() if folder == name]


def serve_command(contract: Mapping, port: int, adapters: Mapping[str, str]) -> str:
    """The shell command that serves the release of `contract` on `port`, with the limits that it states and `adapters`
    (name to folder).

    A GGUF file has its number format, and no --dtype.
    """
    limits = [f"--{name.replace('_', '-')} {value}" for name, value in contract["limits"].items()]
    lines = [f"labkit serve --model {shlex.quote(contract['model'])} --port {port}"]
    named = [name for name in ("revision", "backend", "dtype") if name != "dtype" or contract["backend"] != "llama.cpp"]
    lines += [" ".join(f"--{name} {shlex.quote(contract[name])}" for name in named)]
    lines += [f"--adapter {shlex.quote(f'{name}={folder}')}" for name, folder in adapters.items()]
    lines += [" ".join(limits[at : at + 3]) for at in range(0, len(limits), 3)]
    return " \\\n    ".join(lines)
