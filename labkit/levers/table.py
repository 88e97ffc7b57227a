"""The table lever by risk: counts of passed cases, read back from the runs that the pack holds.

Three seeds of a trained lever are three runs. The table shows the least and the most of them, never their mean: a lever
that breaks a regression case with one seed of three breaks it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabError
from labkit.evaluation.compare import Run, compare_runs, read_run
from labkit.evidence import Pack, read_csv, read_json
from labkit.levers.plan import CASES, FOLDER, LESSON, LEVERS, PLAIN, RESULTS, RUN, Lever

TABLE = "lever_table.csv"
COLUMNS = ("lever", "seed", "group", "passed", "total", "fixed", "broken")


@dataclass(frozen=True)
class GroupCount:
    """One group of cases in one run: how many passed, and the ids that differ from the plain run."""

    group: str
    passed: int
    total: int
    fixed: tuple[str, ...]
    broken: tuple[str, ...]


@dataclass(frozen=True)
class LeverRow:
    """One run of one lever. `seed` is None where nothing is trained; `run` is what run.json says of its cost."""

    lever: str
    title: str
    seed: int | None
    counts: tuple[GroupCount, ...]
    run: dict

    def count(self, group: str) -> GroupCount:
        return next(count for count in self.counts if count.group == group)


@dataclass(frozen=True)
class LeverTable:
    """Every run in the pack, in the order of LEVERS. `groups` are the columns, in the order of the cases.

    `others` are the folders of runs on another base than the plain run's: what they differ in is not the lever.
    """

    groups: tuple[str, ...]
    rows: tuple[LeverRow, ...]
    others: tuple[str, ...] = ()

    def runs_of(self, lever: str) -> list[LeverRow]:
        return [row for row in self.rows if row.lever == lever]

    @property
    def levers(self) -> list[str]:
        return list(dict.fromkeys(row.lever for row in self.rows))

    def passed(self, lever: str, group: str) -> tuple[int, int, int]:
        """The least and the most cases of `group` that passed over the seeds, and how many there are."""
        counts = [row.count(group) for row in self.runs_of(lever)]
        return min(count.passed for count in counts), max(count.passed for count in counts), counts[0].total

    def broken(self, lever: str) -> tuple[str, ...]:
        """The cases that passed in the plain run and fail with some seed."""
        return tuple(dict.fromkeys(i for row in self.runs_of(lever) for count in row.counts for i in count.broken))

    def changes(self, lever: str) -> list[dict]:
        """What a lever fixed and broke, a row for each group in which it did; all its seeds together."""
        rows = []
        for group in self.groups:
            counts = [row.count(group) for row in self.runs_of(lever)]
            fixed = sorted({case_id for count in counts for case_id in count.fixed})
            broken = sorted({case_id for count in counts for case_id in count.broken})
            if fixed or broken:
                passed = {"plain": _of(*self.passed(PLAIN.name, group)), lever: _of(*self.passed(lever, group))}
                rows.append({"group": group, **passed, "fixed": fixed, "broken": broken})
        return rows

    def as_rows(self) -> Iterator[dict]:
        """The long form that lever_table.csv holds: a row for each run and group."""
        for row in self.rows:
            for count in row.counts:
                yield {
                    "lever": row.lever,
                    "seed": "" if row.seed is None else row.seed,
                    "group": count.group,
                    "passed": count.passed,
                    "total": count.total,
                    "fixed": " ".join(count.fixed),
                    "broken": " ".join(count.broken),
                }

    def by_group(self) -> list[dict[str, str]]:
        """The form that people read: a row for each group (and how many cases it has), a column for each lever,
        "least-most" over its seeds; then what each lever broke with any seed, the longest training in seconds, and
        tokens per second."""
        columns = {lever: [row.run for row in self.runs_of(lever)] for lever in self.levers}
        rows = [
            {
                "cases": f"{group} ({self.passed(PLAIN.name, group)[2]})",
                **{lever: spread(*self.passed(lever, group)[:2]) for lever in columns},
            }
            for group in self.groups
        ]
        lost = {lever: "" if lever == PLAIN.name else str(len(self.broken(lever))) for lever in columns}
        rows.append({"cases": "broken", **lost})
        rows.append({"cases": "training, s", **{lever: _seconds(runs) for lever, runs in columns.items()}})
        rows.append({"cases": "tokens/s", **{lever: _rate(runs) for lever, runs in columns.items()}})
        return rows


def read_table(folder: Path) -> LeverTable:
    """The table of the runs in a pack's folder, those on another base than the plain run's named and left out.

    Raises LabError where the plain run is missing, or a run has other cases than it.
    """
    folder = Path(folder) / FOLDER
    groups: dict[str, list[str]] = {}
    for case in read_csv(folder / CASES):
        groups.setdefault(case["group"], []).append(case["case_id"])
    if not (folder / PLAIN.name / RESULTS).is_file():
        raise LabError("the plain run is missing, and a lever is nothing without it", "run `labkit levers`", FOLDER)
    before = read_run(folder / PLAIN.name)
    rows, others = [], []
    for entry in LEVERS:
        for path in _runs(folder, entry.name, entry.trained):
            after, facts = read_run(path), read_json(path / RUN)
            if _base(entry, after, facts) in ("", base_revision(before)):
                rows.append(_row(entry, after, facts, groups, before))
            else:
                others.append(path.name)
    return LeverTable(tuple(groups), tuple(rows), tuple(others))


def write_table(pack: Pack) -> LeverTable:
    """Read the runs of the pack back and write lever_table.csv."""
    table = read_table(pack.folder)
    pack.write_csv(TABLE, table.as_rows(), COLUMNS, LESSON)
    return table


def _runs(folder: Path, lever: str, trained: bool) -> list[Path]:
    """The folders of a lever's runs, by seed."""
    if not trained:
        return [folder / lever] if (folder / lever / RESULTS).is_file() else []
    found = [path.parent for path in folder.glob(f"{lever}-*/{RESULTS}")]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def base_revision(run: Run) -> str:
    """The revision of the weights that answered, without an adapter's; empty where the run does not record it."""
    return run.settings.get("revision", "").partition("+")[0]


def _base(lever: Lever, run: Run, facts: dict) -> str:
    """What the lever was pulled on. Where every weight was trained, the answers' revision is that of the result."""
    if not (lever.tuning and lever.tuning.full):
        return base_revision(run)
    training = facts.get("training")
    return str(training.get("base_revision", "")) if isinstance(training, dict) else ""


def _row(lever: Lever, after: Run, facts: dict, groups: dict, before: Run) -> LeverRow:
    changes = {found.case_id: found.change for found in compare_runs(before, after).changes}
    counts = tuple(
        GroupCount(
            group,
            sum(after.passed(case_id) for case_id in ids),
            len(ids),
            tuple(case_id for case_id in ids if changes[case_id] == "fixed"),
            tuple(case_id for case_id in ids if changes[case_id] == "broken"),
        )
        for group, ids in groups.items()
    )
    return LeverRow(lever.name, lever.title, facts.get("seed"), counts, facts)


def spread(least: int, most: int) -> str:
    return f"{least}" if least == most else f"{least}-{most}"


def _of(least: int, most: int, total: int) -> str:
    return f"{spread(least, most)}/{total}"


def _seconds(runs: Sequence[dict]) -> str:
    seconds = [run["training"]["seconds"] for run in runs if run.get("training")]
    return f"{max(seconds):.0f}" if seconds else ""


def _rate(runs: Sequence[dict]) -> str:
    rates = [run["speed"]["all"]["tokens_per_second"] for run in runs]
    known = [rate for rate in rates if rate]
    return f"{sorted(known)[len(known) // 2]:.0f}" if known else ""
