"""Lesson 13.4: what another engineer needs to start, test, stop and roll back the service."""

import re

from labkit import conformance
from labkit.benchmark import LOCAL_CLAIM
from labkit.benchmark.measure import PERCENTILES, percentile
from labkit.evidence import finite
from labkit.verification.reading import PackReader, number, per_pack, require_filled, require_keys, sections
from labkit.verification.service_checks import moment
from labkit.verification.verdicts import Contradiction, NotYet

CONTRACT = "service_contract.json"
GATES = "release_gates.md"
DRILL = "failure_drill.json"
SHUTDOWN = "shutdown_proof.json"
GUARD = "guard_proof.json"  # of a whole run on a rented machine; the server of 13.4 has its own proof
GUARD_SECONDS = 5  # after its limit a guarded command is gone
BENCHMARK = "benchmark.json"
BENCHMARK_ROWS = "benchmark_rows.csv"
CONFORMANCE = "conformance.json"
README = "README.md"
GATE_STATUSES = ("pass", "fail", "not claimed")

_CONTRACT_KEYS = ("service", "model", "revision", "backend", "dtype", "request", "response", "errors")
_CONTRACT_PARTS = {
    "endpoint": ("base_url", "health", "models", "chat"),
    "limits": ("max_input_tokens", "max_output_tokens", "max_body_bytes", "request_seconds", "concurrency"),
    "stop": ("command", "proof"),
}
_GATE_COLUMNS = ("gate", "threshold", "measured", "status", "evidence")
_DRILL_KEYS = ("provoked", "observed", "detected", "recovered", "seconds", "time")
_DRILLS = ("port_taken", "model_path_wrong")  # starts that must end with an error
_REFUSED = ("key_missing_in_request", "queue_full")  # whose requests are refused
_SHUTDOWN_KEYS = ("pid", "port", "gpu_memory", "started", "stopped", "signal")
_GUARD_KEYS = ("ended_because", "limit_seconds", "budget_usd", "stop_at")
_VERDICTS = tuple(conformance.Verdict)
_SECTIONS = ("What it does", "Set up", "Start", "Test", "Stop", "Roll back", "Known limits")
_COMMAND_SECTIONS = _SECTIONS[1:6]
_NOT_SUPPORTED = re.compile(r"[45]\d\d: |cannot be observed|any key is answered")  # how other verdicts begin
_CENT = 0.01


def check_contract(pack: PackReader) -> str:
    """Every field of the contract is known, and every limit is a positive number."""
    contract = require_keys(pack.json(CONTRACT), _CONTRACT_KEYS, CONTRACT)
    parts = {
        part: require_keys(contract.get(part), keys, f"{part} in {CONTRACT}") for part, keys in _CONTRACT_PARTS.items()
    }
    for key in _CONTRACT_PARTS["limits"]:
        if number(parts["limits"][key], f"{key} in {CONTRACT}") == 0:
            raise NotYet(f"{key} in {CONTRACT} is zero, which is no limit that a service can keep")
    limits = parts["limits"]
    return f"{contract['model']} at {parts['endpoint']['base_url']}, {limits['max_output_tokens']} tokens at most"


def check_gates(pack: PackReader) -> str:
    """Every gate is filled, and one that passes names its evidence in the pack."""
    rows = gate_rows(pack)
    if missing := [row for row in rows if row["status"] == "pass" and row["evidence"] not in pack.entries]:
        gate, evidence = missing[0]["gate"][:40], missing[0]["evidence"][:40]
        raise NotYet(f"{GATES} passes {gate} on the evidence of {evidence}, which is no file of the pack")
    by_status = {status: sum(row["status"] == status for row in rows) for status in GATE_STATUSES}
    return f"{len(rows)} gates: " + ", ".join(f"{count} {status}" for status, count in by_status.items())


@per_pack
def gate_rows(pack: PackReader) -> list[dict[str, str]]:
    """The rows of the gates' table, every cell filled and every status one of the three."""
    lines = [line.strip() for line in pack.text(GATES).splitlines() if line.strip().startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in lines]
    if len(cells) < 3 or tuple(cell.lower() for cell in cells[0]) != _GATE_COLUMNS:
        raise NotYet(f"{GATES} has no table with the columns {', '.join(_GATE_COLUMNS)}")
    rows = []
    for number_, row in enumerate(cells[2:], start=1):
        if len(row) != len(_GATE_COLUMNS):
            raise NotYet(f"{GATES} row {number_} has {len(row)} cells")
        rows.append(dict(zip(_GATE_COLUMNS, row, strict=True)))
        require_filled(rows[-1], f"{GATES} row {number_}")
        if rows[-1]["status"] not in GATE_STATUSES:
            raise NotYet(f"{GATES} row {number_} has the status {row[3][:20]!r}")
    return rows


def check_drill(pack: PackReader) -> str:
    """At least the two of the lesson were tried; each failure was provoked, seen, recovered from, and answered after.

    What a machine cannot do says why, and counts for nothing.
    """
    drills, left = (_by_name(pack.json(DRILL).get(key)) for key in ("drills", "not_possible_here"))
    if missing := [name for name in _DRILLS if name not in drills]:
        raise NotYet(f"{DRILL} has no drill called {', '.join(missing)}")
    if both := sorted(drills.keys() & left.keys()):
        raise Contradiction(f"{DRILL} says of {', '.join(both)} both that it was run and that it is not possible")
    for name, reason in left.items():
        require_keys(reason, ("reason", "time"), f"{name} in {DRILL}")
    for name, drill in drills.items():
        _check_one_drill(name, drill)
    said = [f"{name} recovered in {float(drill['seconds']):.1f} s" for name, drill in drills.items()]
    return "; ".join(said + [f"{name} not possible here" for name in left])


def _by_name(records: object) -> dict[str, dict]:
    found = [record for record in records if isinstance(record, dict)] if isinstance(records, list) else []
    return {str(record.get("name")): record for record in found}


def _check_one_drill(name: str, drill: dict) -> None:
    require_keys(drill, _DRILL_KEYS, f"{name} in {DRILL}")
    moment(drill["time"], f"time of {name} in {DRILL}")
    if number(drill["seconds"], f"seconds of {name} in {DRILL}") == 0:
        raise NotYet(f"{DRILL}: {name} took no time, so it was not run")
    if drill.get("recovered_ok") is not True:
        raise NotYet(f"{DRILL}: {name} did not recover")
    _check_failure(name, drill)
    after = require_keys(drill.get("answered"), ("status", "latency_ms"), f"answered of {name} in {DRILL}")
    if number(after["latency_ms"], f"latency_ms of {name} in {DRILL}") == 0 or after["status"] != 200:
        raise Contradiction(f"{DRILL}: {name} claims a recovery, and the request after it got {after['status']}")


def _check_failure(name: str, drill: dict) -> None:
    """That something failed (a start ended with an error, a request was refused), and was seen within the time."""
    observed = drill["observed"] if isinstance(drill["observed"], dict) else {}
    if name in _DRILLS and not isinstance(observed.get("exit_code"), int):
        raise NotYet(f"{DRILL}: {name} does not say with which exit code the start ended")
    statuses = observed.get("statuses", []) if name in _REFUSED else []
    if observed.get("exit_code") == 0 or (statuses and set(statuses) == {200}):
        raise Contradiction(f"{DRILL}: {name} observed no failure, so nothing was recovered from")
    seen = finite(observed.get("seconds"))
    if seen is not None and seen > float(drill["seconds"]):
        raise Contradiction(f"{DRILL}: {name} was seen after {seen:g} s and over after {drill['seconds']} s")


def check_shutdown(pack: PackReader, name: str = SHUTDOWN) -> str:
    """The process is gone, the port is closed, and the cost is the hours times the price; of a guarded command also
    that it ended at its limit."""
    proof = require_keys(pack.json(name), _SHUTDOWN_KEYS, name)
    if proof.get("process_gone") is not True:
        if isinstance(proof.get("process_gone"), str):
            what = "the process wrote this itself, and only another can prove that it is gone"
            raise NotYet(f"{name}: {what}: `labkit stop --port {proof['port']}` completes it")
        raise NotYet(f"{name}: the process is still there")
    if proof.get("port_closed") is not True:
        raise NotYet(f"{name}: port {proof['port']} is still open")
    started, stopped = (moment(proof[key], f"{key} in {name}") for key in ("started", "stopped"))
    seconds = number(proof.get("seconds"), f"seconds in {name}")
    if stopped < started:
        raise Contradiction(f"{name}: it stopped before it started")
    if abs((stopped - started).total_seconds() - seconds) > 2:
        raise Contradiction(f"{name} says {seconds:g} s, its times are {(stopped - started).total_seconds():g} s apart")
    price = number(proof.get("hourly_usd"), f"hourly_usd in {name}")
    cost = number(proof.get("cost_usd"), f"cost_usd in {name}")
    if abs(cost - seconds / 3600 * price) > _CENT:
        raise Contradiction(
            f"{name} says ${cost:.2f}, {seconds:g} s at ${price:.2f} an hour are ${seconds / 3600 * price:.2f}"
        )
    limit = _within_limit(proof, seconds, cost, name) if "guard" in proof else ""
    return f"process gone, port {proof['port']} closed, {seconds:g} s, ${cost:.2f}{limit}"


def _within_limit(proof: dict, seconds: float, cost: float, name: str) -> str:
    """That the guard ended the command in time, and that what it calls the end is one by its own figures."""
    guard = require_keys(proof["guard"], _GUARD_KEYS, f"guard in {name}")
    limit = number(guard["limit_seconds"], f"limit_seconds in {name}")
    budget = number(guard["budget_usd"], f"budget_usd in {name}")
    if seconds > limit + GUARD_SECONDS:
        raise NotYet(f"{name}: the command ran {seconds - limit:.0f} s past its limit of {limit:g} s")
    if guard["ended_because"] == "budget" and not budget:
        raise Contradiction(f"{name} says that the budget ended it, and that there was none")
    if budget and cost > budget + number(proof["hourly_usd"], name) * GUARD_SECONDS / 3600 + _CENT:
        raise Contradiction(f"{name} says that ${cost:.2f} stayed within a budget of ${budget:.2f}")
    hook = proof.get("hook")
    if hook != "none" and not (isinstance(hook, dict) and hook.get("exit") == 0):
        what = hook if isinstance(hook, str) else "it failed"
        raise NotYet(f"{name}: stop hook: {what}. The machine may still cost money: look at your provider's page")
    return f"; ended by: {guard['ended_because']}, limit {limit:g} s"


def check_readme(pack: PackReader) -> str:
    """The sections are there and filled, and those that say what to do hold a command."""
    said = sections(pack.text(README))
    require_filled({name: said.get(name, "") for name in _SECTIONS}, README)
    if silent := [name for name in _COMMAND_SECTIONS if not _has_command(said[name])]:
        raise NotYet(f"{README} has no command under {', '.join(silent)}")
    return f"{len(_SECTIONS)} sections, with commands to set up, start, test, stop and roll back"


def _has_command(body: str) -> bool:
    """Whether a fenced block with something in it is closed again."""
    blocks = re.split(r"^```.*$", body, flags=re.M)
    return any(block.strip() for block in blocks[1:-1:2])


def check_conformance(pack: PackReader) -> str:
    """Each feature was judged once and with a reason, and the counts are those of the findings."""
    found = require_keys(pack.json(CONFORMANCE), ("base_url", "time", "model", "not_proved"), CONFORMANCE)
    moment(found["time"], f"time in {CONFORMANCE}")
    findings = found.get("findings") or []
    features = [finding.get("feature") for finding in findings]
    for finding in findings:
        require_filled(finding, f"{finding.get('feature')} in {CONFORMANCE}")
        if finding["verdict"] == "supported" and _NOT_SUPPORTED.match(str(finding["detail"])):
            what = f"{finding['feature']} is supported, and saw: {finding['detail'][:60]}"
            raise Contradiction(f"{CONFORMANCE} says that {what}")
    _check_keys(pack, found, findings)
    if not findings or len(set(features)) < len(features):
        raise NotYet(f"{CONFORMANCE} has no features, or one twice")
    counts = {verdict: sum(finding["verdict"] == verdict for finding in findings) for verdict in _VERDICTS}
    if sum(counts.values()) < len(findings):
        raise NotYet(f"{CONFORMANCE} has a verdict that is none of {', '.join(_VERDICTS)}")
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    if found.get("counts") != counts:
        raise Contradiction(f"{CONFORMANCE} counts {found.get('counts')}, its findings are {said}")
    return f"{len(findings)} features of {found['model']} at {found['base_url']}: {said}"


def _check_keys(pack: PackReader, found: dict, findings: list[dict]) -> None:
    """A server that answers any key has no authorization, whatever the contract of its address says."""
    contract = pack.json(CONTRACT) if pack.exists(CONTRACT) else {}
    endpoint, asks = contract.get("endpoint") or {}, str(contract.get("authorization", "none")).lower()
    any_key = any(row["feature"] == "wrong key" and row["verdict"] == "not offered" for row in findings)
    if any_key and endpoint.get("base_url") == found["base_url"] and not asks.startswith("none"):
        if pack.written(CONTRACT) > pack.written(CONFORMANCE):
            raise NotYet(f"{CONTRACT} was made again after {CONFORMANCE}, whose server answered any key")
        raise Contradiction(f"{CONFORMANCE} met a server that answers any key, {CONTRACT} says {asks[:40]}")


def check_benchmark(pack: PackReader) -> str:
    """Each level recomputes from its rows, and the file claims no more than route and device allow."""
    report = require_keys(pack.json(BENCHMARK), ("model", "route", "claim"), BENCHMARK)
    if not report.get("levels"):
        raise NotYet(f"{BENCHMARK} has no levels")
    said = [_check_level(level, report["rows"]) for level in report["levels"]]
    if strays := {row["concurrency"] for row in report["rows"]} - {level["concurrency"] for level in report["levels"]}:
        raise Contradiction(f"{BENCHMARK} has rows of {sorted(strays)} clients and no such level")
    controlled = pack.route == "rented_gpu" and report.get("device") == "cuda"
    if not controlled and report["claim"] != LOCAL_CLAIM:
        where = f"{pack.route} on {report.get('device')}"
        raise Contradiction(f"{BENCHMARK} claims {str(report['claim'])[:60]!r}, which {where} cannot prove")
    return "; ".join(said)


def _check_level(level: dict, all_rows: list[dict]) -> str:
    """Requests, tokens, speed and percentiles of one level against the rows with its number of clients."""
    where = f"level {level['concurrency']} of {BENCHMARK}"
    rows = [row for row in all_rows if row["concurrency"] == level["concurrency"]]
    answered = number(level.get("requests"), f"requests in {where}") - number(level.get("errors"), f"errors in {where}")
    if not rows or answered != len(rows):
        raise Contradiction(f"{where} says that {answered:g} requests were answered, its rows show {len(rows)}")
    tokens = sum(number(row["completion_tokens"], f"completion_tokens in {where}") for row in rows)
    if level.get("completion_tokens") != tokens:
        raise Contradiction(f"{where} claims {level.get('completion_tokens')} tokens, its rows show {tokens:g}")
    seconds, speed = (number(level.get(key), f"{key} in {where}") for key in ("seconds", "tokens_per_second"))
    if abs(speed * seconds - tokens) > 0.01 * tokens + 0.001 * speed:
        raise Contradiction(f"{where} claims {speed:g} tokens per second: {tokens:g} tokens in {seconds:g} s are not")
    waited = sum(number(row.get("latency_ms"), f"latency_ms in {where}") for row in rows) / 1000
    if waited > level["concurrency"] * (1.01 * seconds + 0.01):
        clients = f"{level['concurrency']} clients"
        raise Contradiction(f"{where} lasted {seconds:g} s; its rows waited {waited:.3g} s, too long for {clients}")
    for name in ("", "ttft_", "tpot_"):
        _check_percentiles(level, name, [row.get(f"{name or 'latency_'}ms") for row in rows], where)
    return f"{level['concurrency']} at a time: p50 {level['p50_ms']:g} ms, p95 {level['p95_ms']:g} ms, {len(rows)} rows"


def _check_percentiles(level: dict, name: str, values: list, where: str) -> None:
    known = [number(value, f"{name}ms in {where}") for value in values if value is not None]
    for p in PERCENTILES:
        key, found = f"{name}p{p}_ms", percentile(known, p) if known else None
        if level.get(key) is None or found is None:
            agree = level.get(key) is found
        else:
            agree = abs(number(level[key], f"{key} in {where}") - found) <= 0.01
        if not agree:
            raise Contradiction(f"{where} says {key} {level.get(key)}, its rows give {found}")
