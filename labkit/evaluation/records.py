"""What a run leaves: the cases, a row for each answer, and a summary by risk without an average."""

import json
from collections.abc import Sequence
from dataclasses import replace

from labkit.decoding import Sampling
from labkit.evaluation.cases import COLUMNS, RISKS, Case, load_cases, review_of
from labkit.evaluation.compare import wilson_interval
from labkit.evaluation.levers import PLAIN, Levers
from labkit.evaluation.runner import Result, identity, run_id
from labkit.evaluation.targets import Target
from labkit.evidence import Pack

RESULT_COLUMNS = (
    "case_id",
    "risk",
    "check",
    "output",
    "latency_ms",
    "prompt_tokens",
    "completion_tokens",
    "pass",
    "notes",
    "learner_pass",
    "learner_notes",
    "model",
    "revision",
    "backend",
    "seed",
    "repeat",
    "ttft_ms",
    "quantization",
    "levers",
    "prompt_version",
    "max_tokens",
    "temperature",
    "top_p",
    "judge_pass",
    "judge_reason",
    "judge_model",
    "judge_prompt",
)


def result_row(result: Result, target: Target, levers: Levers = PLAIN) -> dict:
    """A row of eval_results.csv and eval_results.jsonl: the automatic verdict, the learner's and a judge's side by
    side. What is unknown is None: `ttft_ms` of a whole answer, the columns of a judge where none graded it."""
    case, reply, sampling, grade = result.case, result.reply, result.sampling, result.grade
    return {
        "case_id": case.case_id,
        "risk": case.risk,
        "check": case.check,
        "output": reply.text,
        "latency_ms": round(reply.latency_ms, 1),
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "pass": result.verdict.passed,
        "notes": result.verdict.reason,
        "learner_pass": case.learner_pass,
        "learner_notes": case.learner_notes,
        "model": target.model,
        "revision": target.revision,
        "backend": target.backend,
        "seed": result.seed,
        "repeat": result.repeat,
        "ttft_ms": None if reply.ttft_ms is None else round(reply.ttft_ms, 1),
        "quantization": target.dtype,
        "levers": levers.label,
        "prompt_version": levers.prompt_version,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "judge_pass": grade.passed if grade else None,
        "judge_reason": grade.reason if grade else None,
        "judge_model": grade.model if grade else None,
        "judge_prompt": grade.prompt if grade else None,
    }


def summarise(
    results: Sequence[Result],
    target: Target,
    sampling: Sampling,
    route: str,
    levers: Levers = PLAIN,
    concurrency: int = 1,
) -> dict:
    """eval_summary.json: counts for each risk and a table of failures; there is no overall score on purpose.

    Counts are of cases, and a case passes when all of its repeats do; `pass_rate` counts every repeat.
    `levers` are what was changed against the plain run.
    """
    repeats = max((result.repeat for result in results), default=1)
    cases = [result.case for result in results if result.repeat == 1]
    decoding = {"max_tokens": sampling.max_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p}
    graded = agreement(results)
    return {
        "run_id": run_id(target, cases, sampling, concurrency, repeats, levers),
        **identity(target),
        "route": route,
        "cases": len(cases),
        "repeats": repeats,
        "settings": {**decoding, "seed": sampling.seed, "concurrency": concurrency},
        "levers": levers.as_dict(),
        "speed": speed(results),
        "by_risk": {risk: _counts([r for r in results if r.case.risk == risk]) for risk in RISKS},
        "failures": failure_table(results),
        **({"judge": graded} if graded else {}),
    }


def speed(results: Sequence[Result]) -> dict:
    """How fast an answer came, of all cases and of those that must be a form: what keeping to its schema costs is the
    difference between a run that does and the plain one, at the same number of requests at once."""
    return {"all": _rate(results), "forms": _rate([result for result in results if result.case.form])}


def _rate(results: Sequence[Result]) -> dict:
    """Tokens made, the seconds of the requests added up, and their ratio; None without a token."""
    answered = [result.reply for result in results if result.answered]
    tokens = sum(reply.completion_tokens for reply in answered)
    seconds = sum(reply.latency_ms for reply in answered) / 1000
    rate = round(tokens / seconds, 1) if tokens and seconds else None
    return {"completion_tokens": tokens, "seconds": round(seconds, 3), "tokens_per_second": rate}


def agreement(results: Sequence[Result]) -> dict:
    """How often a judge says what the checks say, and where not; empty where there was none."""
    graded = [result for result in results if result.grade]
    if not graded:
        return {}
    clear = [result for result in graded if result.grade.passed is not None]
    apart = [result for result in clear if result.grade.passed != result.verdict.passed]
    return {
        "model": graded[0].grade.model,
        "prompt": graded[0].grade.prompt,
        "graded": len(clear),
        "no_grade": len(graded) - len(clear),
        "agrees": len(clear) - len(apart),
        "only_judge_passes": _ids(result for result in apart if result.grade.passed),
        "only_checks_pass": _ids(result for result in apart if not result.grade.passed),
    }


def _ids(results) -> list[str]:
    return list(dict.fromkeys(result.case.case_id for result in results))


def _counts(results: Sequence[Result]) -> dict:
    """Cases passed and failed, and over all repeats the rate with its 95 % interval (none without a case)."""
    failed, total = list(_first_failures(results)), len({result.case.case_id for result in results})
    counts = {"passed": total - len(failed), "failed": len(failed), "total": total, "failed_ids": failed}
    if not results:
        return counts
    passed = sum(result.verdict.passed for result in results)
    low, high = (round(end, 4) for end in wilson_interval(passed, len(results)))
    return {**counts, "pass_rate": {"passed": passed, "total": len(results), "low": low, "high": high}}


def _first_failures(results: Sequence[Result]) -> dict[str, Result]:
    """The first failed repeat of each case that has one, by case id."""
    failures: dict[str, Result] = {}
    for result in results:
        if not result.verdict.passed:
            failures.setdefault(result.case.case_id, result)
    return failures


def failure_table(results: Sequence[Result]) -> list[dict]:
    """One row for each risk and kind of failure, with an example answer, worst first. A case stands in one of them,
    that of its first failed repeat."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in _first_failures(results).values():
        groups.setdefault((result.case.risk, result.verdict.kind), []).append(result)
    rows = [
        {
            "risk": risk,
            "check": kind,
            "count": len(group),
            "case_ids": [result.case.case_id for result in group],
            "example": f"{group[0].reply.text[:120]!r}: {group[0].verdict.reason}",
        }
        for (risk, kind), group in groups.items()
    ]
    return sorted(rows, key=lambda row: (-row["count"], row["risk"], row["check"]))


def one_of_each_risk(results: Sequence[Result]) -> list[dict]:
    """The first case of each risk as a row to look at: what was asked, what came back, the verdict and its reason."""
    first = {}
    for result in results:
        first.setdefault(result.case.risk, result)
    return [
        {
            "case_id": result.case.case_id,
            "prompt": result.case.prompt,
            "output": result.reply.text,
            "verdict": "pass" if result.verdict.passed else "fail",
            "reason": result.verdict.reason,
        }
        for result in first.values()
    ]


def write_evaluation(
    pack: Pack,
    results: Sequence[Result],
    target: Target,
    sampling: Sampling,
    lesson: str = "13.2",
    levers: Levers = PLAIN,
    concurrency: int = 1,
) -> dict:
    """Write eval_cases.csv, eval_results.csv, the same rows as eval_results.jsonl, and eval_summary.json; returns the
    summary. `sampling`, `levers` and `concurrency` are those that `evaluate` was given."""
    rows = [result_row(result, target, levers) for result in results]
    cases = (result.case.as_row() for result in results if result.repeat == 1)
    summary = summarise(results, target, sampling, pack.route, levers, concurrency)
    with pack.replacing("eval_cases.csv", "eval_results.csv", "eval_results.jsonl", "eval_summary.json"):
        pack.write_csv("eval_cases.csv", cases, COLUMNS, lesson)
        pack.write_csv("eval_results.csv", map(_spoken, rows), RESULT_COLUMNS, lesson)
        lines = (json.dumps(row, ensure_ascii=False) for row in rows)
        pack.write_text("eval_results.jsonl", "".join(f"{line}\n" for line in lines), lesson)
        pack.write_json("eval_summary.json", summary, lesson)
    return summary


def _spoken(row: dict) -> dict:
    """The row as CSV: true and false in small letters, nothing for what is unknown."""
    return {key: str(value).lower() if isinstance(value, bool) else value for key, value in row.items()}


def cases_with_review(pack: Pack, cases: Sequence[Case]) -> list[Case]:
    """`cases` with the judgements that the learner already wrote into the pack's eval_cases.csv: they are kept."""
    if not pack.path("eval_cases.csv").exists():
        return list(cases)
    review = review_of(load_cases(pack.path("eval_cases.csv")))
    kept = {case_id: judgement for case_id, judgement in review.items() if any(judgement)}
    return [
        replace(case, learner_pass=kept[case.case_id][0], learner_notes=kept[case.case_id][1])
        if case.case_id in kept
        else case
        for case in cases
    ]
