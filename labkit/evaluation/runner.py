"""Run the cases against a target: each is asked, answered and judged; a run is known by all that could change it."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace

from labkit.decoding import Sampling
from labkit.errors import LabError
from labkit.evaluation.cases import Case
from labkit.evaluation.checks import Answer, Verdict, judge, parse_checks
from labkit.evaluation.levers import PLAIN, Asked, Levers, plainly
from labkit.evaluation.resume import AnswersSoFar
from labkit.evaluation.targets import Reply, Target

NO_ANSWER = "no answer"  # the kind of failure of a case that the target refused or did not answer


@dataclass(frozen=True)
class Grade:
    """What another model said of an answer. `passed` is None where its grade could not be read: that is no pass."""

    passed: bool | None
    reason: str
    model: str
    prompt: str


@dataclass(frozen=True)
class Result:
    """One answer to one case. `asked` has the note, the passages and the prompt around it; `repeat` counts from 1.

    `grade` stands beside the verdict and never changes it.
    """

    case: Case
    reply: Reply
    verdict: Verdict
    asked: Asked
    repeat: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    grade: Grade | None = None

    @property
    def seed(self) -> int:
        return self.sampling.seed

    @property
    def answered(self) -> bool:
        return self.verdict.kind != NO_ANSWER


@dataclass(frozen=True)
class _Question:
    case: Case
    asked: Asked
    repeat: int
    sampling: Sampling

    @property
    def key(self) -> tuple[str, int]:
        return self.case.case_id, self.repeat

    def result(self, reply: Reply, verdict: Verdict) -> Result:
        return Result(self.case, reply, verdict, self.asked, self.repeat, self.sampling)

    def judged(self, reply: Reply) -> Result:
        checks = parse_checks(self.case.check, self.case.expected)
        return self.result(reply, judge(Answer(reply.text, reply.latency_ms), checks))

    def refused(self, error: LabError, started: float) -> Result:
        """`started` is when it was asked, by the performance counter."""
        waited = (time.perf_counter() - started) * 1000
        return self.result(Reply("", waited, 0, 0), Verdict(False, NO_ANSWER, f"no answer: {error.what}"))


def evaluate(
    target: Target,
    cases: Sequence[Case],
    sampling: Sampling | None = None,
    on_result: Callable[[Result], None] = lambda result: None,
    levers: Levers = PLAIN,
    concurrency: int = 1,
    repeats: int = 1,
    so_far: AnswersSoFar | None = None,
) -> list[Result]:
    """Ask every case `repeats` times, `concurrency` at once, with the seeds from `sampling.seed` on, and judge each
    answer; the results stand in the order of the cases. `levers` decide what is asked. One answer before the first is
    made and thrown away, so that no case pays for the warm-up.

    What is held in `so_far` is not asked again, and what comes is kept there. A case that the target refuses is a
    failed result of the kind NO_ANSWER. Raises LabError when none is answered, and where
    `require_countable` does.
    """
    require_countable(target, concurrency, repeats)
    questions = _questions(cases, levers, sampling or Sampling(max_tokens=96), repeats)
    held = so_far.held if so_far else {}
    results = {asked.key: asked.result(*held[asked.key]) for asked in questions if asked.key in held}
    for result in results.values():
        on_result(result)
    if missing := [asked for asked in questions if asked.key not in results]:
        target.ask(plainly("Hello"), Sampling(max_tokens=2))
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


def _questions(cases: Sequence[Case], levers: Levers, sampling: Sampling, repeats: int) -> list[_Question]:
    return [
        _Question(case, asked, number + 1, replace(sampling, seed=sampling.seed + number))
        for case, asked in [(case, levers.asked(case)) for case in cases]
        for number in range(repeats)
    ]


def _as_they_come(
    target: Target, questions: Sequence[_Question], concurrency: int
) -> Iterator[tuple[tuple[str, int], Result]]:
    """Each question's key and result, in the order in which the answers end."""
    if concurrency == 1:
        yield from ((question.key, _answer(target, question)) for question in questions)
        return
    if target.together:
        yield from _together(target, questions, concurrency)
        return
    pool = ThreadPoolExecutor(concurrency)
    try:
        keys = {pool.submit(_answer, target, question): question.key for question in questions}
        for done in as_completed(keys):
            yield keys[done], done.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _together(
    target: Target, questions: Sequence[_Question], concurrency: int
) -> Iterator[tuple[tuple[str, int], Result]]:
    started = time.perf_counter()
    orders = [(question.asked, question.sampling) for question in questions]
    for number, ended in target.together(orders, concurrency):
        question = questions[number]
        yield question.key, question.judged(ended) if isinstance(ended, Reply) else question.refused(ended, started)


def _answer(target: Target, question: _Question) -> Result:
    started = time.perf_counter()
    try:
        return question.judged(target.ask(question.asked, question.sampling))
    except LabError as error:
        return question.refused(error, started)


def run_id(
    target: Target,
    cases: Sequence[Case],
    sampling: Sampling,
    concurrency: int = 1,
    repeats: int = 1,
    levers: Levers = PLAIN,
) -> str:
    """The first 16 hex digits of the sha256 of everything that could change a run, as canonical JSON.

    What is asked for each case is in it, so that a note or a prompt whose text was edited is another run; the learner's
    judgement is not. Requests at once change latencies, and with them verdicts. A judge changes neither answers nor
    verdicts, and is left out.
    """
    asked = [
        {key: value for key, value in asdict(case).items() if not key.startswith("learner_")}
        | {"asked": asdict(levers.asked(case))}
        for case in cases
    ]
    settings = {"sampling": asdict(sampling), "concurrency": concurrency, "repeats": repeats}
    whole = {"target": identity(target), "cases": asked, **settings, "levers": levers.as_dict()}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]


def identity(target: Target) -> dict[str, str]:
    """The facts by which two targets are told apart."""
    return {name: getattr(target, name) for name in ("model", "revision", "device", "dtype", "backend")}
