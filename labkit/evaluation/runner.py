"""Run the cases against a target, and write what happened: cases, results, and a summary without an average."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from labkit.adaptation.rag import Library, ground
from labkit.evaluation.cases import COLUMNS, RISKS, Case, load_cases, review_of
from labkit.evaluation.checks import Answer, Verdict, judge, parse_checks
from labkit.evaluation.targets import Reply, Target
from labkit.evidence import Pack
from labkit.generation import Sampling

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
)


@dataclass(frozen=True)
class Result:
    case: Case
    reply: Reply
    verdict: Verdict


def evaluate(
    target: Target,
    cases: Sequence[Case],
    sampling: Sampling | None = None,
    on_result: Callable[[Result], None] = lambda result: None,
    prompt_of: Callable[[Case], str] = Case.full_prompt,
) -> list[Result]:
    """Ask every case once, in order, and judge each answer. One answer before the first is made and thrown away, so
    that no case pays for the warm-up.
    """
    sampling = sampling or Sampling(max_tokens=96)
    target.ask("Hello", Sampling(max_tokens=2))
    results = []
    for case in cases:
        reply = target.ask(prompt_of(case), sampling)
        verdict = judge(Answer(reply.text, reply.latency_ms), parse_checks(case.check, case.expected))
        results.append(Result(case, reply, verdict))
        on_result(results[-1])
    return results


def grounded_prompts(library: Library | None) -> Callable[[Case], str]:
    """For `evaluate`: a case that comes with a note keeps it, any other gets the best passage of `library`."""
    if library is None:
        return Case.full_prompt
    index = library.index()
    return lambda case: case.full_prompt() if case.context_id else ground(index, case.prompt).prompt


def result_row(result: Result, target: Target) -> dict:
    """A row of eval_results.csv: the automatic verdict and the learner's stand side by side."""
    case, reply = result.case, result.reply
    return {
        "case_id": case.case_id,
        "risk": case.risk,
        "check": case.check,
        "output": reply.text,
        "latency_ms": f"{reply.latency_ms:.1f}",
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "pass": str(result.verdict.passed).lower(),
        "notes": result.verdict.reason,
        "learner_pass": case.learner_pass,
        "learner_notes": case.learner_notes,
        "model": target.model,
        "revision": target.revision,
    }


def summarise(
    results: Sequence[Result],
    target: Target,
    sampling: Sampling,
    route: str,
    levers: Mapping[str, object] | None = None,
) -> dict:
    """eval_summary.json: counts for each risk and a table of failures; there is no overall score on purpose.

    `levers` are what was changed against the plain run, such as the documents that prompts were grounded in.
    """
    by_risk = {}
    for risk in RISKS:
        of_risk = [result for result in results if result.case.risk == risk]
        failed = [result.case.case_id for result in of_risk if not result.verdict.passed]
        passed = len(of_risk) - len(failed)
        by_risk[risk] = {"passed": passed, "failed": len(failed), "total": len(of_risk), "failed_ids": failed}
    settings = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "seed": sampling.seed,
        **(levers or {}),
    }
    identity = {"model": target.model, "revision": target.revision, "device": target.device, "dtype": target.dtype}
    return {
        **identity,
        "route": route,
        "cases": len(results),
        "settings": settings | dict(levers or {}),
        "by_risk": by_risk,
        "failures": failure_table(results),
    }


def failure_table(results: Sequence[Result]) -> list[dict]:
    """One row for each risk and kind of failure, with an example answer, worst first."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        if not result.verdict.passed:
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
    levers: Mapping[str, object] | None = None,
) -> dict:
    """Write eval_cases.csv, eval_results.csv and eval_summary.json; returns the summary."""
    pack.write_csv("eval_cases.csv", (result.case.as_row() for result in results), COLUMNS, lesson)
    pack.write_csv("eval_results.csv", (result_row(result, target) for result in results), RESULT_COLUMNS, lesson)
    summary = summarise(results, target, sampling, pack.route, levers)
    pack.write_json("eval_summary.json", summary, lesson)
    return summary


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
