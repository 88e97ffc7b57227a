"""Whether a converted model still answers as its source did.

A conversion is meant to change nothing, so every case whose text differs is counted, not only those whose verdict
changed: a check that passes twice may have seen two answers. The checks' limits of time are left out, so that a machine
which is busy for a moment breaks no case: only a text that differs can.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from labkit.errors import LabError
from labkit.evaluation.cases import Case
from labkit.evaluation.checks import untimed
from labkit.evaluation.runner import Result, evaluate
from labkit.evaluation.targets import Target, model_target
from labkit.generation import ChatModel, Sampling

LIMIT = 0.2  # share of the cases; above it a conversion is flagged
DECODING = Sampling(max_tokens=96)  # greedy


@dataclass(frozen=True)
class Fidelity:
    """What became of the source's answers. `differing`, `fixed` and `broken` are case ids: another text, and of these
    a verdict that is now a pass or a fail. `source_passed` and `passed` count cases."""

    cases: int
    differing: tuple[str, ...]
    fixed: tuple[str, ...]
    broken: tuple[str, ...]
    source_passed: int
    passed: int
    limit: float = LIMIT

    @property
    def share(self) -> float:
        return len(self.differing) / self.cases

    @property
    def flagged(self) -> bool:
        return self.share > self.limit

    @property
    def sentence(self) -> str:
        told = f"{len(self.differing)} of {self.cases} answers differ from the source's ({self.share:.0%}"
        side = "more than the" if self.flagged else "at most the"
        changed = f"{len(self.fixed)} fixed, {len(self.broken)} broken"
        return f"{told}, {side} {self.limit:.0%} that are allowed); {changed}"

    def as_dict(self) -> dict:
        return {
            "cases": self.cases,
            "answers_differ": list(self.differing),
            "share": round(self.share, 4),
            "limit": self.limit,
            "flagged": self.flagged,
            "source_passed": self.source_passed,
            "passed": self.passed,
            "fixed": list(self.fixed),
            "broken": list(self.broken),
        }


def compare_answers(source: Sequence[Result], converted: Sequence[Result], limit: float = LIMIT) -> Fidelity:
    """Raises LabError unless both asked the same cases, and for a limit that is no share."""
    require_share(limit)
    pairs = list(zip(source, converted, strict=False))
    same = len(source) == len(converted) and all(a.case.case_id == b.case.case_id for a, b in pairs)
    if not pairs or not same:
        raise LabError("the two models were not asked the same cases", "run the same cases with both")
    now, before = {id_of(b): b.verdict.passed for _, b in pairs}, {id_of(a): a.verdict.passed for a, _ in pairs}
    return Fidelity(
        cases=len(pairs),
        differing=tuple(id_of(a) for a, b in pairs if a.reply.text != b.reply.text),
        fixed=tuple(name for name in now if now[name] and not before[name]),
        broken=tuple(name for name in now if before[name] and not now[name]),
        source_passed=sum(before.values()),
        passed=sum(now.values()),
        limit=limit,
    )


def require_share(limit: float) -> None:
    if not 0 <= limit <= 1:
        raise LabError(f"{limit} is no share of the cases", "give --limit from 0 to 1, such as 0.2")


def id_of(result: Result) -> str:
    return result.case.case_id


def answers(model: ChatModel, cases: Sequence[Case]) -> list[Result]:
    """Each case asked once, greedily, as many at once as a model in this process takes."""
    return answers_of(model_target(model), cases)


def answers_of(target: Target, cases: Sequence[Case]) -> list[Result]:
    """As `answers`; each result's case has the checks that it was judged by."""
    asked = [replace(case, check=untimed(case.check)) for case in cases]
    return evaluate(target, asked, DECODING, concurrency=target.concurrency)
