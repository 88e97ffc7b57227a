"""Two or more runs of the same cases side by side: what was fixed, what was broken, and what may be said of it.

An average hides a case that used to pass and now fails. Here every case is paired with itself, and a difference of
counts is only called better or worse where chance alone would rarely make it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import comb, sqrt
from pathlib import Path

from labkit.errors import LabError
from labkit.evaluation.checks import JSON_FORM
from labkit.evidence import finite, read_csv

RESULTS = "eval_results.csv"
NEEDED = ("case_id", "risk", "check", "output", "pass", "notes")
SETTINGS = ("model", "revision", "backend", "quantization", "levers", "max_tokens", "temperature", "top_p")
CHANCE = 0.05  # a difference that chance alone makes more often than this is not called one
SHOWN_CHARACTERS = 120
CHANGES = {
    (True, False): "broken",
    (False, True): "fixed",
    (False, False): "still failing",
    (True, True): "still passing",
}  # (passed before, passes now) -> what became of the case


@dataclass(frozen=True)
class Run:
    """One run of the cases. `rows` are those of eval_results.csv by case id, in the order of the file: of a case that
    was asked `repeats` times the first that failed, since it passes only when all of them do."""

    label: str
    rows: dict[str, dict[str, str]]
    repeats: int = 1

    def passed(self, case_id: str) -> bool:
        return self.rows[case_id]["pass"] == "true"

    @property
    def settings(self) -> dict[str, str]:
        """How the run was made, as far as it is recorded: older runs have fewer columns."""
        row = next(iter(self.rows.values()))
        return {name: row[name] for name in SETTINGS if row.get(name)}


@dataclass(frozen=True)
class Change:
    """What became of one case. `change` is a value of CHANGES; `reason` is why it passes or fails now."""

    case_id: str
    risk: str
    change: str
    before: str
    after: str
    reason: str


@dataclass(frozen=True)
class Difference:
    """Something that was set otherwise: one of SETTINGS, or a kind of lever (prompt, rag, schema); "none" without."""

    what: str
    before: str
    after: str


@dataclass(frozen=True)
class Comparison:
    """`after` against `before`. `p_value` is McNemar's exact test on the cases whose verdict changed; `differences`
    are what was set otherwise, as far as both runs record it."""

    before: str
    after: str
    changes: tuple[Change, ...]
    p_value: float
    differences: tuple[Difference, ...] = ()

    def ids(self, change: str) -> tuple[str, ...]:
        return tuple(found.case_id for found in self.changes if found.change == change)

    @property
    def setting(self) -> str:
        """What was set otherwise, in one sentence; empty where nothing that is recorded was."""
        told = "; ".join(f"{found.what}: {found.before} -> {found.after}" for found in self.differences)
        if len(self.differences) < 2:
            return told
        count = len(self.differences)
        return f"{told}. {count} things were changed at once: what each of them did cannot be told."

    @property
    def sentence(self) -> str:
        """The strongest sentence that these cases allow."""
        fixed, broken, total = len(self.ids("fixed")), len(self.ids("broken")), len(self.changes)
        counted = f"{fixed} fixed, {broken} broken of {total}"
        if not fixed and not broken:
            return f"{counted}: no verdict changed."
        if self.p_value >= CHANCE:
            side = "better" if fixed >= broken else "worse"
            return f"{counted} (p = {self.p_value:.2g}): not enough cases to call it {side}."
        side = "better" if fixed > broken else "worse"
        regressions = f" The {broken} broken are regressions all the same." if broken and side == "better" else ""
        return f"{counted} (p = {self.p_value:.2g}): {side} on these cases.{regressions}"

    def by_risk(self) -> dict[str, dict[str, int]]:
        """Counts of each change for each risk."""
        table: dict[str, dict[str, int]] = {}
        for found in self.changes:
            counts = table.setdefault(found.risk, dict.fromkeys(CHANGES.values(), 0))
            counts[found.change] += 1
        return table

    def as_dict(self) -> dict:
        return {**asdict(self), "by_risk": self.by_risk(), "setting": self.setting, "sentence": self.sentence}


def read_run(path: Path) -> Run:
    """The run in a pack's folder, or in an eval_results.csv. Raises LabError for a file that is none."""
    file = path / RESULTS if path.is_dir() else path
    if not file.is_file():
        name = path.resolve().name
        what = f"{name} holds no {RESULTS}" if path.is_dir() else f"there is no pack and no file {name}"
        raise LabError(what, "give a pack that `labkit eval` wrote into, or its eval_results.csv")
    rows = read_csv(file)
    label = file.parent.name if file.name == RESULTS else file.stem
    if not rows:
        raise LabError(f"{file.name} has no rows", "run `labkit eval` again", where=label)
    if missing := [name for name in NEEDED if name not in rows[0]]:
        what = f"{file.name} has no column {', '.join(missing)}"
        raise LabError(what, "give a file that `labkit eval` wrote, or its pack", where=label)
    for number, row in enumerate(rows, start=2):
        if row["pass"] not in ("true", "false"):
            what = f"{file.name} row {number}, column pass: {row['pass'][:40]!r} is neither true nor false"
            raise LabError(what, "mend that row, or run `labkit eval` again", where=label)
    return Run(label, *_by_case(rows, file.name, label))


def _by_case(rows: Sequence[dict[str, str]], name: str, label: str) -> tuple[dict[str, dict[str, str]], int]:
    """For each case the row that decides it, and how often each was asked. Raises LabError unless all alike."""
    groups: dict[str, dict[str, dict[str, str]]] = {}
    for row in rows:
        group = groups.setdefault(row["case_id"], {})
        if group.setdefault(row.get("repeat", "1"), row) is not row:
            raise LabError(f"{name} has a case twice: {row['case_id']}", "run `labkit eval` again", where=label)
    counts = {len(group) for group in groups.values()}
    if len(counts) > 1:
        raise LabError(f"{name} has more repeats of some cases than of others", "run `labkit eval` again", where=label)
    deciding = {case_id: min(group.values(), key=lambda row: row["pass"]) for case_id, group in groups.items()}
    return deciding, counts.pop()


def compare_runs(before: Run, after: Run) -> Comparison:
    """What `after` changed, case by case. Raises LabError unless both asked the same cases with the same checks."""
    _same_cases(before, after)
    changes = tuple(_change(row, before, after) for row in before.rows.values())
    fixed = sum(found.change == "fixed" for found in changes)
    broken = sum(found.change == "broken" for found in changes)
    found = tuple(differences(before.settings, after.settings))
    return Comparison(before.label, after.label, changes, mcnemar(fixed, broken), found)


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Difference]:
    """What two runs set otherwise. Another model has another revision, which is no second change."""
    for what in SETTINGS:
        one, other = before.get(what), after.get(what)
        if one is None or other is None or one == other:
            continue
        if what == "levers":
            yield from _lever_differences(_levers(one), _levers(other))
        elif what != "revision" or before.get("model") == after.get("model"):
            yield Difference(what, one, other)


def _levers(label: str) -> dict[str, str]:
    """The label of a run's levers, such as "prompt desk 1 + schema", by kind."""
    return {lever.partition(" ")[0]: lever for lever in label.split(" + ") if lever != "plain"}


def _lever_differences(before: dict[str, str], after: dict[str, str]) -> Iterator[Difference]:
    for kind in dict.fromkeys([*before, *after]):
        one, other = before.get(kind, "none"), after.get(kind, "none")
        if one != other:
            yield Difference(kind, one, other)


def _same_cases(before: Run, after: Run) -> None:
    next_step = "compare runs of one file of cases; run `labkit eval` again with the same --cases"
    for one, other in ((before, after), (after, before)):
        if alone := [case_id for case_id in one.rows if case_id not in other.rows]:
            what = f"{len(alone)} cases are only in {one.label}: {', '.join(alone[:5])}"
            raise LabError(what, next_step)
    if before.repeats != after.repeats:
        asked = f"{before.repeats} times in {before.label} and {after.repeats} times in {after.label}"
        raise LabError(f"each case was asked {asked}, and must pass every time", "run both with the same --repeats")
    for case_id, row in before.rows.items():
        if row["check"] != after.rows[case_id]["check"]:
            what = f"{case_id} is judged by other checks in {after.label} than in {before.label}"
            raise LabError(what, next_step)


def _change(row: dict[str, str], before: Run, after: Run) -> Change:
    case_id = row["case_id"]
    now = after.rows[case_id]
    change = CHANGES[before.passed(case_id), after.passed(case_id)]
    outputs = (row["output"][:SHOWN_CHARACTERS], now["output"][:SHOWN_CHARACTERS])
    return Change(case_id, row["risk"], change, *outputs, now["notes"])


def mcnemar(fixed: int, broken: int) -> float:
    """The two-sided p-value of McNemar's exact test: how often a fair coin splits `fixed` + `broken` changed cases at
    least as unevenly (McNemar 1947, Psychometrika 12; exact form: the binomial test on the discordant pairs).
    """
    changed = fixed + broken
    tail = sum(comb(changed, count) for count in range(min(fixed, broken) + 1)) / 2**changed
    return min(1.0, 2 * tail)


def wilson_interval(passed: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a pass rate, lower and upper end (Wilson 1927, JASA 22). `total` is at least 1.

    It stays inside 0 to 1 and is honest for few cases, where the usual interval has no width at 0 and at `total`.
    """
    rate, spread = passed / total, z * z / total
    centre = (rate + spread / 2) / (1 + spread)
    half = z * sqrt(rate * (1 - rate) / total + spread / total / 4) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def pass_rates(runs: Sequence[Run]) -> list[dict]:
    """For each run and risk the cases that passed, with the Wilson interval of the rate."""
    rows = []
    for run in runs:
        for risk in dict.fromkeys(row["risk"] for row in run.rows.values()):
            ids = [case_id for case_id, row in run.rows.items() if row["risk"] == risk]
            passed = sum(run.passed(case_id) for case_id in ids)
            low, high = wilson_interval(passed, len(ids))
            rows.append({"run": run.label, "risk": risk, "passed": passed, "total": len(ids), "low": low, "high": high})
    return rows


def speeds(runs: Sequence[Run]) -> list[dict]:
    """For each run the tokens in a second of a request, of all cases and of those that must be a JSON form: the price
    of keeping them to its schema. None where a run does not record it. Runs with as many requests at once compare."""
    return [
        {
            "run": run.label,
            "tokens_per_second": _speed(run.rows.values()),
            "of_forms": _speed(row for row in run.rows.values() if JSON_FORM in row["check"]),
        }
        for run in runs
    ]


def _speed(rows: Iterable[Mapping[str, str]]) -> float | None:
    pairs = [(finite(row.get("completion_tokens")), finite(row.get("latency_ms"))) for row in rows]
    known = [(tokens, latency) for tokens, latency in pairs if tokens and latency]
    total = sum(latency for _, latency in known)
    return round(1000 * sum(tokens for tokens, _ in known) / total, 1) if total else None
