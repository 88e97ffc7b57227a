"""Read one pack back and judge it by the three tables: artifact rules, cross-checks, claims."""

from functools import cache
from pathlib import Path

from labkit.errors import LabError
from labkit.evidence import FORMS
from labkit.routes import load_route
from labkit.verification.claims import CLAIMS, EVERYTHING, ClaimRule
from labkit.verification.crosschecks import CROSS_CHECKS, CrossCheck
from labkit.verification.reading import PackReader
from labkit.verification.rules import RULES, Rule
from labkit.verification.verdicts import Finding, Outcome, Verdict, Verification, judge, printable, worst

LESSONS = tuple(sorted({"13.0", *(lesson for rule in RULES for lesson in rule.lessons)}))


def verify(folder: Path, lesson: str | None = None) -> Verification:
    """Judge the pack in `folder`, or only what `lesson` (such as "13.2") leaves in it.

    Never raises for what is in the pack: a damaged file is a verdict. Raises LabError when there is no such folder
    and for a lesson that does not exist.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise LabError(f"there is no pack in {folder.name}", "give the folder of a pack, or make one with `labkit run`")
    if lesson is not None and lesson not in LESSONS:
        raise LabError(f"there is no lesson {lesson!r}", f"choose one of {', '.join(LESSONS)}")
    return _Judgement(PackReader(folder)).verification(lesson)


class _Judgement:
    """The findings of one pack, each made once and only when it is asked for (loading a checkpoint takes seconds)."""

    def __init__(self, pack: PackReader):
        self._pack = pack
        self._required = load_route(pack.route).required_artifacts
        self._rules = {rule.name: rule for rule in RULES if rule.name in self._required or pack.exists(rule.name)}
        routed = (c for c in CROSS_CHECKS if pack.route in c.routes)
        made = (c for c in routed if not c.optional or any(pack.exists(name) for name in c.artifacts))
        self._crosses = {cross.name: cross for cross in made}
        self._outcome = cache(self._judged)

    def verification(self, lesson: str | None) -> Verification:
        return Verification(
            pack=printable(self._pack.folder.resolve().name),
            route=self._pack.route,
            lesson=lesson,
            artifacts=tuple(self._artifact(r) for r in self._rules.values() if lesson is None or lesson in r.lessons),
            cross_checks=tuple(self._cross(c) for c in self._crosses.values() if lesson is None or lesson == c.lesson),
            claims=tuple(self._claim(c) for c in CLAIMS if lesson is None or lesson in c.lessons),
        )

    def _judged(self, name: str) -> Outcome:
        """The outcome of an artifact rule or a cross-check by its name."""
        if name in self._crosses:
            return judge(self._crosses[name].check, self._pack)
        rule = self._rules.get(name)
        if rule is None:
            return Outcome(Verdict.NOT_YET, f"{name} is missing")
        content = judge(rule.check, self._pack)
        recorded = [judge(self._pack.check_recorded, file) for file in rule.recorded_files]
        disagreements = [
            outcome
            for cross in self._crosses.values()
            if name in cross.artifacts and (outcome := self._outcome(cross.name)).verdict is Verdict.CONTRADICTED
        ]
        return worst([content, *disagreements, *recorded])

    def _artifact(self, rule: Rule) -> Finding:
        required = rule.name in self._required
        action = f"run `labkit record {rule.name}`" if self._reworded(rule.name) else rule.next_action
        return self._finding(rule.name, "/".join(rule.lessons), self._outcome(rule.name), action, required)

    def _reworded(self, name: str) -> bool:
        """Whether a person has written a form in other words since: running its lesson again would write over them."""
        there = name in FORMS and name in self._pack.entries and self._pack.exists(name)
        return there and judge(self._pack.check_recorded, name).verdict is Verdict.NOT_YET

    def _cross(self, cross: CrossCheck) -> Finding:
        return self._finding(cross.name, cross.lesson, self._outcome(cross.name), cross.next_action, required=True)

    def _claim(self, claim: ClaimRule) -> Finding:
        names = [name for dep in claim.rests_on for name in (self._required if dep == EVERYTHING else (dep,))]
        if EVERYTHING in claim.rests_on:
            names += self._crosses  # the dict's keys: every cross-check
        outcome = worst([judge(claim.condition, self._pack), *self._shaken(names)])
        name = claim.name.format(route=self._pack.route)
        contradicted = outcome.verdict is Verdict.CONTRADICTED
        action = "settle the contradiction named here first" if contradicted else claim.next_action
        return self._finding(name, "/".join(claim.lessons), outcome, action, required=False)

    def _shaken(self, names: list[str]) -> list[Outcome]:
        """One outcome that names those of `names` that are not supported, the gravest only; none when all are."""
        found = {name: outcome for name in names if (outcome := self._outcome(name)).verdict is not Verdict.SUPPORTED}
        if not found:
            return []
        verdict = worst(list(found.values())).verdict
        weak = ", ".join(name for name, outcome in found.items() if outcome.verdict is verdict)
        return [Outcome(verdict, f"it rests on what is {verdict}: {weak}")]

    def _finding(self, name: str, lesson: str, outcome: Outcome, next_action: str, required: bool) -> Finding:
        action = "" if outcome.verdict is Verdict.SUPPORTED else _on_route(next_action, self._pack.route)
        return Finding(name, lesson, outcome.verdict, outcome.detail, action, required)


def _on_route(next_action: str, route: str) -> str:
    """The rules' tables say `labkit run`, which is the route local_cpu; a pack of another route is made on its own."""
    return next_action if route == "local_cpu" else next_action.replace("`labkit run", f"`labkit run --route {route}")
