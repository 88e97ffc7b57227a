"""Lessons 13.2 and 13.4, the running model: first run, smoke test, cases, results and their summary."""

import re
from collections import defaultdict
from datetime import datetime
from pathlib import Path

from labkit.evaluation.checks import JSON_FORM
from labkit.evaluation.compare import wilson_interval
from labkit.verification.reading import PackReader, number, per_pack, require_filled, require_keys
from labkit.verification.verdicts import Contradiction, NotYet

FIRST_RUN = "first_run.md"
SMOKE = "api_smoke_test.json"
CASES = "eval_cases.csv"
RESULTS = "eval_results.csv"
SUMMARY = "eval_summary.json"
RISKS = ("format", "grounding", "safety", "performance", "regression")
MINIMUM_CASES = 5
LATENCY_DIGITS = 1e-4  # seconds by which a row's latency, which is rounded, may differ from what was added up
RATE_DIGITS = 1e-3  # to which the ends of an interval must agree: the summary rounds them

_FIRST_RUN_KEYS = (
    "Command",
    "Prompt",
    "Output",
    "Latency",
    "Peak memory",
    "Model",
    "Revision",
    "Device",
    "Route",
)
_SMOKE_KEYS = ("base_url", "time", "client", "model", "revision", "first_message")
_CASE_COLUMNS = ("case_id", "prompt", "expected_behavior", "risk", "pass", "notes", "check")
_ASKED = ("prompt", "context_id", "check", "expected")
_RESULT_COLUMNS = (
    "case_id",
    "risk",
    "check",
    "output",
    "latency_ms",
    "prompt_tokens",
    "completion_tokens",
    "pass",
    "notes",
    "model",
    "revision",
)
_SUMMARY_KEYS = ("model", "revision", "device", "route", "cases", "settings")


def check_first_run(pack: PackReader) -> str:
    fields = pack.fields(FIRST_RUN, _FIRST_RUN_KEYS)
    seconds = measure(fields["Latency"], "s", f"Latency in {FIRST_RUN}")
    asked = re.search(r"labkit chat\b.{0,80}? --model[ =](\S{1,200})", fields["Command"])
    if asked and Path(asked[1].strip("'\"`")).name != Path(fields["Model"]).name:
        raise Contradiction(f"{FIRST_RUN} asked the model {asked[1]} and says Model {fields['Model']}")
    memory = measure(fields["Peak memory"], "MiB", f"Peak memory in {FIRST_RUN}")
    return f"{fields['Model']} on {fields['Device']}: {seconds:g} s, peak memory {memory:g} MiB"


def measure(text: str, unit: str, what: str) -> float:
    """A positive number followed by its unit, such as `0.41 s`."""
    value, _, found = text.partition(" ")
    if found.strip() != unit:
        raise NotYet(f"{what} is {text[:40]!r}, not a number of {unit}")
    measured = number(value, what)
    if measured == 0:
        raise NotYet(f"{what} is zero: nothing was measured")
    return measured


def check_smoke(pack: PackReader) -> str:
    """A live server answered: healthy, with choices, with text, and with token counts that add up."""
    smoke = require_keys(pack.json(SMOKE), _SMOKE_KEYS, SMOKE)
    moment(smoke["time"], f"time in {SMOKE}")
    health = smoke.get("health")
    if not isinstance(health, dict) or health.get("status") != "ok":
        raise NotYet(f"{SMOKE}: health is not ok")
    if smoke.get("has_choices") is not True:
        raise NotYet(f"{SMOKE}: the answer had no choices")
    latency = number(smoke.get("latency_ms"), f"latency_ms in {SMOKE}")
    usage = require_keys(
        smoke.get("usage"), ("prompt_tokens", "completion_tokens", "total_tokens"), f"usage in {SMOKE}"
    )
    prompt, completion, total = (
        number(usage[key], f"{key} in {SMOKE}") for key in ("prompt_tokens", "completion_tokens", "total_tokens")
    )
    if prompt + completion != total:
        raise Contradiction(f"{SMOKE}: {prompt:g} + {completion:g} tokens are not the total of {total:g}")
    return f"{smoke['model']} answered {completion:g} tokens in {latency:g} ms"


def moment(value: object, what: str) -> datetime:
    """An ISO 8601 time with its zone. Raises NotYet for anything else."""
    try:
        found = datetime.fromisoformat(str(value))
    except ValueError:
        raise NotYet(f"{what} is not an ISO time") from None
    if found.tzinfo is None:
        raise NotYet(f"{what} names no time zone")
    return found


def check_cases(pack: PackReader) -> str:
    rows = case_rows(pack)
    for row in rows:
        require_filled({key: row[key] for key in ("prompt", "expected_behavior", "check")}, f"{CASES} {row['case_id']}")
    if twice := len(rows) - len({tuple(row.get(key, "") for key in _ASKED) for row in rows}):
        raise NotYet(f"{CASES} asks {twice} cases twice, under other ids: each counts once")
    return f"{len(rows)} cases over {len(RISKS)} risks"


@per_pack
def case_rows(pack: PackReader) -> list[dict[str, str]]:
    rows = pack.rows(CASES, _CASE_COLUMNS)
    _require_coverage(rows, CASES)
    return rows


def _require_coverage(rows: list[dict[str, str]], name: str) -> None:
    """At least five rows, each case once, every one of the five risks tried, and no risk outside them."""
    if len(rows) < MINIMUM_CASES:
        raise NotYet(f"{name} has {len(rows)} cases, fewer than {MINIMUM_CASES}")
    ids = [row["case_id"] for row in rows]
    if not all(ids) or len(set(ids)) < len(ids):
        raise NotYet(f"{name} has a case without an id, or one id twice")
    risks = {row["risk"] for row in rows}
    if missing := [risk for risk in RISKS if risk not in risks]:
        raise NotYet(f"{name} has no case for {', '.join(missing)}")
    if odd := sorted(risks - set(RISKS)):
        raise NotYet(f"{name} has a risk that is none of the five: {', '.join(odd)[:60]}")


def check_results(pack: PackReader) -> str:
    rows = result_rows(pack)
    cases, failed = len(_ids(rows)), len(_ids(rows, "false"))
    times = f" {len(rows) // cases} times each" if len(rows) > cases else ""
    return f"{cases} cases tried{times}, {cases - failed} passed and {failed} failed, each with its reason"


def _ids(rows: list[dict[str, str]], verdict: str = "") -> list[str]:
    """Each case once; only those with a row of this verdict, where one is given."""
    return list(dict.fromkeys(row["case_id"] for row in rows if verdict in ("", row["pass"])))


@per_pack
def result_rows(pack: PackReader) -> list[dict[str, str]]:
    """The rows of eval_results.csv, every automatic verdict true or false and every reason given.

    A case that was asked several times has a row for each repeat, and each repeat has every case.
    """
    rows = pack.rows(RESULTS, _RESULT_COLUMNS)
    _require_repeats(rows)
    for row in rows:
        where = f"{RESULTS} {row['case_id']}"
        if row["pass"] not in ("true", "false"):
            raise NotYet(f"{where}: pass is {row['pass'][:20]!r}, not true or false")
        require_filled({key: row[key] for key in ("notes", "check", "model", "revision")}, where)
        for key in ("latency_ms", "prompt_tokens", "completion_tokens"):
            number(row[key], f"{key} in {where}")
    if len(rows) >= MINIMUM_CASES and len({row["notes"].strip() for row in rows}) == 1:
        raise NotYet(f"{RESULTS} has the same note in every row: {rows[0]['notes'][:40]!r}")
    models = {(row["model"], row["revision"]) for row in rows}
    if len(models) > 1:
        raise Contradiction(f"{RESULTS} mixes {len(models)} models or revisions")
    return rows


def _require_repeats(rows: list[dict[str, str]]) -> None:
    repeats = defaultdict(list)
    for row in rows:
        repeats[row.get("repeat", "1")].append(row)
    for group in repeats.values():
        _require_coverage(group, RESULTS)
    if len({frozenset((row["case_id"], row["risk"], row["check"]) for row in group) for group in repeats.values()}) > 1:
        raise Contradiction(f"{RESULTS}: its {len(repeats)} repeats are not of the same cases, risks and checks")


def check_summary(pack: PackReader) -> str:
    """The summary, and that every count and id in it recomputes from the rows of eval_results.csv."""
    summary = require_keys(pack.json(SUMMARY), _SUMMARY_KEYS, SUMMARY)
    rows = result_rows(pack)
    for key in ("model", "revision"):
        if summary[key] != rows[0][key]:
            raise Contradiction(f"{SUMMARY} says {key} {summary[key]}, {RESULTS} says {rows[0][key]}")
    cases = len(_ids(rows))
    if (said := (summary["cases"], summary.get("repeats", 1))) != (cases, len(rows) // cases):
        found = f"{cases}, {len(rows) // cases} times each"
        raise Contradiction(f"{SUMMARY} says {said[0]} cases, {said[1]} times each; {RESULTS} has {found}")
    if not isinstance(summary.get("by_risk"), dict):
        raise NotYet(f"{SUMMARY} has no counts by risk")
    _check_tokens(summary, rows)
    counted = count_by_risk(rows)
    for risk in sorted(set(counted) | set(summary["by_risk"])):
        said = summary["by_risk"].get(risk)
        if _comparable(said) != _comparable(counted.get(risk)):
            raise Contradiction(f"{SUMMARY} on {risk}: {_counts(said)}; {RESULTS} gives {_counts(counted.get(risk))}")
        _check_rate(said, counted.get(risk), risk)
    _check_failures(summary, rows)
    return "; ".join(f"{risk} {counted[risk]['passed']}/{counted[risk]['total']}" for risk in RISKS)


def _check_tokens(summary: dict, rows: list[dict[str, str]]) -> None:
    """The speed that the summary states, where it states one, is that of its rows."""
    speed = summary.get("speed")
    for name, of in (("all", rows), ("forms", [row for row in rows if JSON_FORM in row["check"]])):
        if isinstance(speed, dict) and isinstance(stated := speed.get(name), dict):
            _check_speed(stated, of, f"speed of {name} in {SUMMARY}")


def _check_speed(stated: dict, rows: list[dict[str, str]], where: str) -> None:
    """Tokens, the seconds of the answers and their ratio. A case without an answer has no token, and does not count."""
    said = number(stated.get("completion_tokens"), where)
    if said != (found := sum(float(row["completion_tokens"]) for row in rows)):
        raise Contradiction(f"{where} says {said:g} tokens, {RESULTS} has {found:g}")
    if not said:
        return
    seconds, rate = (number(stated.get(key), f"{key}, {where}") for key in ("seconds", "tokens_per_second"))
    least = sum(float(row["latency_ms"]) for row in rows if float(row["completion_tokens"])) / 1000
    if seconds < least - LATENCY_DIGITS * len(rows) or abs(rate * seconds - said) > 0.1 * seconds + 0.001 * rate:
        shown = f"{RESULTS} has {said:g} tokens in at least {least:.3g} s"
        raise Contradiction(f"{where} says {rate:g} tokens per second in {seconds:g} s, {shown}")


def _check_failures(summary: dict, rows: list[dict[str, str]]) -> None:
    listed = sorted(case for group in summary.get("failures", []) for case in group["case_ids"])
    failed = sorted(_ids(rows, "false"))
    if listed != failed:
        raise Contradiction(f"{SUMMARY} lists {len(listed)} failures, {RESULTS} has {len(failed)}, or they differ")


def count_by_risk(rows: list[dict[str, str]]) -> dict[str, dict]:
    """For each risk: cases passed (in every repeat), failed, total, the ids that failed, and the pass rate of all
    repeats, in the shape that eval_summary.json has."""
    groups: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        groups[row["risk"]].append(row)
    return {risk: _count(group) for risk, group in groups.items()}


def _count(rows: list[dict[str, str]]) -> dict:
    failed, total = _ids(rows, "false"), len(_ids(rows))
    passed = sum(row["pass"] == "true" for row in rows)
    low, high = wilson_interval(passed, len(rows))
    rate = {"passed": passed, "total": len(rows), "low": low, "high": high}
    counts = {"passed": total - len(failed), "failed": len(failed), "total": total, "failed_ids": failed}
    return {**counts, "pass_rate": rate}


def _check_rate(counts: object, counted: dict | None, risk: str) -> None:
    """A summary of an older version gives no rate; what is given must be the one that the rows have."""
    if counted and isinstance(counts, dict) and "pass_rate" in counts:
        rate = counts["pass_rate"] if isinstance(counts["pass_rate"], dict) else {}
        for key, value in counted["pass_rate"].items():
            if abs(number(rate.get(key), f"pass_rate {key} of {risk} in {SUMMARY}") - value) > RATE_DIGITS:
                said = f"{SUMMARY} says pass_rate {key} {rate[key]} on {risk}"
                raise Contradiction(f"{said}, {RESULTS} gives {value:.4g}")


def _comparable(counts: object) -> tuple | None:
    if not isinstance(counts, dict):
        return None
    return (*(counts.get(key) for key in ("passed", "failed", "total")), sorted(map(str, counts.get("failed_ids", []))))


def _counts(counts: object) -> str:
    return f"{counts.get('passed')} of {counts.get('total')} passed" if isinstance(counts, dict) else "nothing"
