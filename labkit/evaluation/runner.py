"""Run the cases against a target, and write what happened: cases, results, and a summary without an average."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace

from labkit.adaptation.rag import Library, ground
from labkit.errors import LabError
from labkit.evaluation.cases import COLUMNS, RISKS, Case, load_cases, review_of
from labkit.evaluation.checks import Answer, Verdict, judge, parse_checks
from labkit.evaluation.compare import wilson_interval
from labkit.evaluation.resume import AnswersSoFar
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
    "backend",
    "seed",
    "repeat",
)
NO_ANSWER = "no answer"  # the kind of failure of a case that the target refused or did not answer


@dataclass(frozen=True)
class Result:
    """One answer to one case. `prompt` is what was asked, note and passages included; `repeat` counts from 1."""

    case: Case
    reply: Reply
    verdict: Verdict
    prompt: str = ""
    repeat: int = 1
    seed: int = 0

    @property
    def answered(self) -> bool:
        return self.verdict.kind != NO_ANSWER


@dataclass(frozen=True)
class _Question:
    case: Case
    prompt: str
    repeat: int
    sampling: Sampling

    @property
    def key(self) -> tuple[str, int]:
        return self.case.case_id, self.repeat

    def result(self, reply: Reply, verdict: Verdict) -> Result:
        return Result(self.case, reply, verdict, self.prompt, self.repeat, self.sampling.seed)


def evaluate(
    target: Target,
    cases: Sequence[Case],
    sampling: Sampling | None = None,
    on_result: Callable[[Result], None] = lambda result: None,
    prompt_of: Callable[[Case], str] = Case.full_prompt,
    concurrency: int = 1,
    repeats: int = 1,
    so_far: AnswersSoFar | None = None,
) -> list[Result]:
    """Ask every case `repeats` times, `concurrency` at once, with the seeds from `sampling.seed` on, and judge each
    answer; the results stand in the order of the cases. One answer before the first is made and thrown away, so that
    no case pays for the warm-up.

    What is held in `so_far` is not asked again, and what comes is kept there. A case that the target refuses is a
    failed result of the kind NO_ANSWER. Raises LabError when none is answered, and where
    `require_countable` does.
    """
    require_countable(target, concurrency, repeats)
    questions = _questions(cases, prompt_of, sampling or Sampling(max_tokens=96), repeats)
    held = so_far.held if so_far else {}
    results = {asked.key: asked.result(*held[asked.key]) for asked in questions if asked.key in held}
    for result in results.values():
        on_result(result)
    if missing := [asked for asked in questions if asked.key not in results]:
        target.ask("Hello", Sampling(max_tokens=2))
        for key, result in _as_they_come(target, missing, concurrency):
            results[key] = result
            if so_far and result.answered:
                so_far.add(key, result.reply, result.verdict)
            on_result(result)
    ordered = [results[asked.key] for asked in questions]
    if ordered and not any(result.answered for result in ordered):
        what = f"none of the {len(cases)} cases was answered; the first: {ordered[0].verdict.reason}"
        raise LabError(what, "mend that, look at the server's log where there is one, and run the cases again")
    return ordered


def require_countable(target: Target, concurrency: int, repeats: int) -> None:
    """Raises LabError for numbers below 1, and for requests at once to a target that takes one."""
    for name, number in (("concurrency", concurrency), ("repeats", repeats)):
        if number < 1:
            raise LabError(f"--{name} {number} is below 1", f"give --{name} 1 or more")
    if concurrency > 1 and target.concurrency == 1:
        what = f"{concurrency} requests at once are too many for {target.model}, which answers one at a time here"
        raise LabError(what, "leave --concurrency out, or start `labkit serve` and give --base-url")


def _questions(
    cases: Sequence[Case], prompt_of: Callable[[Case], str], sampling: Sampling, repeats: int
) -> list[_Question]:
    return [
        _Question(case, prompt, number + 1, replace(sampling, seed=sampling.seed + number))
        for case, prompt in [(case, prompt_of(case)) for case in cases]
        for number in range(repeats)
    ]


def _as_they_come(
    target: Target, questions: Sequence[_Question], concurrency: int
) -> Iterator[tuple[tuple[str, int], Result]]:
    """Each question's key and result, in the order in which the answers end."""
    if concurrency == 1:
        yield from ((asked.key, _answer(target, asked)) for asked in questions)
        return
    pool = ThreadPoolExecutor(concurrency)
    try:
        keys = {pool.submit(_answer, target, asked): asked.key for asked in questions}
        for done in as_completed(keys):
            yield keys[done], done.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _answer(target: Target, asked: _Question) -> Result:
    started = time.perf_counter()
    try:
        reply = target.ask(asked.prompt, asked.sampling)
    except LabError as error:
        waited = (time.perf_counter() - started) * 1000
        return asked.result(Reply("", waited, 0, 0), Verdict(False, NO_ANSWER, f"no answer: {error.what}"))
    case = asked.case
    return asked.result(reply, judge(Answer(reply.text, reply.latency_ms), parse_checks(case.check, case.expected)))


def run_id(
    target: Target,
    prompts: Sequence[tuple[Case, str]],
    sampling: Sampling,
    concurrency: int = 1,
    repeats: int = 1,
    levers: Mapping[str, object] | None = None,
) -> str:
    """The first 16 hex digits of the sha256 of everything that could change a run, as canonical JSON.

    `prompts` are the cases with what is asked for each, so that a note whose text was edited is another run; the
    learner's judgement is not in it. Requests at once change latencies, and with them verdicts.
    """
    asked = [
        {key: value for key, value in asdict(case).items() if not key.startswith("learner_")} | {"asked": prompt}
        for case, prompt in prompts
    ]
    settings = {"sampling": asdict(sampling), "concurrency": concurrency, "repeats": repeats, "levers": levers or {}}
    canonical = json.dumps({"target": _identity(target), "cases": asked, **settings}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _identity(target: Target) -> dict[str, str]:
    return {name: getattr(target, name) for name in ("model", "revision", "device", "dtype", "backend")}


def grounded_prompts(library: Library | None) -> Callable[[Case], str]:
    """For `evaluate`: a case that comes with a note keeps it, any other gets the best passage of `library`."""
    if library is None:
        return Case.full_prompt
    index = library.index()
    return lambda case: case.full_prompt() if case.context_id else ground(index, case.prompt).prompt


def result_row(result: Result, target: Target) -> dict:
    """A row of eval_results.csv and eval_results.jsonl: the automatic verdict and the learner's side by side."""
    case, reply = result.case, result.reply
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
    }


def summarise(
    results: Sequence[Result],
    target: Target,
    sampling: Sampling,
    route: str,
    levers: Mapping[str, object] | None = None,
    concurrency: int = 1,
) -> dict:
    """eval_summary.json: counts for each risk and a table of failures; there is no overall score on purpose.

    Counts are of cases, and a case passes when all of its repeats do; `pass_rate` counts every repeat.
    `levers` are what was changed against the plain run, such as the documents that prompts were grounded in.
    """
    repeats = max((result.repeat for result in results), default=1)
    prompts = [(result.case, result.prompt) for result in results if result.repeat == 1]
    settings = {"max_tokens": sampling.max_tokens, "temperature": sampling.temperature, "seed": sampling.seed}
    return {
        "run_id": run_id(target, prompts, sampling, concurrency, repeats, levers),
        **_identity(target),
        "route": route,
        "cases": len(prompts),
        "repeats": repeats,
        "settings": {**settings, "concurrency": concurrency, **(levers or {})},
        "by_risk": {risk: _counts([r for r in results if r.case.risk == risk]) for risk in RISKS},
        "failures": failure_table(results),
    }


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
    levers: Mapping[str, object] | None = None,
    concurrency: int = 1,
) -> dict:
    """Write eval_cases.csv, eval_results.csv, the same rows as eval_results.jsonl, and eval_summary.json; returns the
    summary. `sampling`, `levers` and `concurrency` are those that `evaluate` was given."""
    rows = [result_row(result, target) for result in results]
    cases = (result.case.as_row() for result in results if result.repeat == 1)
    spoken = (row | {"pass": str(row["pass"]).lower()} for row in rows)
    pack.write_csv("eval_cases.csv", cases, COLUMNS, lesson)
    pack.write_csv("eval_results.csv", spoken, RESULT_COLUMNS, lesson)
    pack.write_text("eval_results.jsonl", "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), lesson)
    summary = summarise(results, target, sampling, pack.route, levers, concurrency)
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
