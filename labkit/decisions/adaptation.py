"""From evaluations of the same cases to lora_decision.md and before_after.csv."""

from collections.abc import Mapping
from pathlib import Path

from labkit.adaptation.decision import ASKS, LEVERS, NONE, PRIVACY, AdaptationDecision, Failure, Tried
from labkit.errors import LabError
from labkit.evaluation.cases import load_cases
from labkit.evaluation.compare import CHANGES, RESULTS, Comparison, Run, compare_runs, read_run
from labkit.evaluation.overlap import NEAR, SHINGLE, TrainingData, find_overlap, read_training
from labkit.evidence import Pack, read_csv, read_json

LESSON = "13.6"
DECISION, BEFORE_AFTER = "lora_decision.md", "before_after.csv"
COLUMNS = ("case_id", "risk", "before", "after", "change", "lever")
VERDICTS = {True: "pass", False: "fail"}


def decide_adaptation(
    baseline: Path,
    tried: Mapping[str, Path],
    train: Path,
    adapter_run: Path | None = None,
    full_run: Path | None = None,
    cases: Path | None = None,
    ask: str = "lora",
    owner: str = "",
    privacy: str = "",
    consent: str = "",
    split: str = "",
) -> AdaptationDecision:
    """The decision that `baseline` and the runs of the levers `tried` (lever to pack, or eval_results.csv) allow.

    `cases` is where the evaluation's prompts stand (default: eval_cases.csv beside the baseline). Raises LabError for
    an unknown lever, class of privacy or thing asked for, and for runs of other cases than the baseline's.
    """
    _require_known(tried, ask, privacy)
    before = read_run(baseline)
    file = baseline / RESULTS if baseline.is_dir() else baseline
    prompts = [case.full_prompt() for case in load_cases(_cases_of(file, cases)) if case.case_id in before.rows]
    if len(prompts) != len(before.rows):
        raise LabError(f"{len(before.rows) - len(prompts)} cases of the baseline have no prompt", CASES_NEXT)
    data = read_training(train)
    matches = list(find_overlap(data.prompts, prompts))
    exact = {match.training for match in matches if match.exact}
    near = {match.training for match in matches} - exact
    named = next(iter(before.rows.values()))
    trained = (("lora", adapter_run), ("full", full_run))
    return AdaptationDecision(
        asked_for=ask,
        model=named.get("model") or NONE,
        revision=named.get("revision") or NONE,
        baseline=_run_id(file),
        cases=len(before.rows),
        repeats=before.repeats,
        failures=repeated_failures(file),
        levers=tuple(_tried(before, lever, tried[lever]) for lever in LEVERS if lever in tried),
        trained=tuple(_tried(before, lever, path) for lever, path in trained if path),
        training_examples=len(data.prompts),
        different_examples=data.different,
        exact_overlap=len(exact),
        near_overlap=len(near),
        owner=owner.strip(),
        privacy=privacy,
        consent=consent.strip() or NONE,
        split=split.strip() or _split(train, data, prompts),
    )


CASES_NEXT = "give the file of the evaluation's cases with --cases"


def _require_known(tried: Mapping[str, Path], ask: str, privacy: str) -> None:
    if unknown := [lever for lever in tried if lever not in LEVERS]:
        raise LabError(f"there is no lever called {unknown[0]!r}", f"choose from {', '.join(LEVERS)}")
    if ask not in ASKS:
        raise LabError(f"--ask {ask} is unknown", f"choose one of {', '.join(ASKS)}")
    if privacy and privacy not in PRIVACY:
        raise LabError(f"--privacy {privacy} is unknown", f"choose one of {', '.join(PRIVACY)}")


def _cases_of(results: Path, cases: Path | None) -> Path:
    found = cases or results.parent / "eval_cases.csv"
    if not found.exists():
        raise LabError(f"{found.name} with the evaluation's prompts is missing", CASES_NEXT)
    return found


def _run_id(results: Path) -> str:
    """The id in the eval_summary.json beside `results`; "none" where there is none."""
    summary = results.parent / "eval_summary.json"
    return str(read_json(summary).get("run_id") or NONE) if results.name == RESULTS and summary.exists() else NONE


def repeated_failures(results: Path) -> tuple[Failure, ...]:
    """The cases of eval_results.csv that failed in every repeat, in the order of the file."""
    rows: dict[str, list[dict[str, str]]] = {}
    for row in read_csv(results):
        rows.setdefault(row["case_id"], []).append(row)
    failed = [group[0] for group in rows.values() if all(row["pass"] == "false" for row in group)]
    return tuple(Failure(row["case_id"], row["risk"], row["check"].replace("|", "/")) for row in failed)


def _tried(before: Run, lever: str, path: Path) -> Tried:
    found = compare_runs(before, read_run(path))
    broken = found.ids("broken")
    kept = [change for change in found.changes if change.change in ("fixed", "still passing")]
    regressions = tuple(c.case_id for c in found.changes if c.change == "broken" and c.risk == "regression")
    passed = sum(before.passed(case_id) for case_id in before.rows)
    return Tried(lever, passed, len(kept), len(found.changes), found.ids("fixed"), broken, regressions)


def _split(train: Path, data: TrainingData, prompts: list[str]) -> str:
    return (
        f"separate files: {len(data.prompts)} chats of {train.name} against {len(prompts)} evaluation prompts, "
        f"compared by {SHINGLE}-word shingles (near: Jaccard {NEAR} or more)"
    )


def write_decision(
    pack: Pack, decision: AdaptationDecision, baseline: Path, adapter_run: Path | None = None
) -> AdaptationDecision:
    """Write lora_decision.md, and before_after.csv where there is a run after LoRA. Returns what was read back."""
    text = decision.as_markdown()
    read_back = AdaptationDecision.from_markdown(text)
    with pack.replacing(DECISION, BEFORE_AFTER):
        pack.write_text(DECISION, text, LESSON)
        if adapter_run:
            rows = before_after_rows(compare_runs(read_run(baseline), read_run(adapter_run)), "lora")
            pack.write_csv(BEFORE_AFTER, rows, COLUMNS, LESSON)
    return read_back


def before_after_rows(comparison: Comparison, lever: str) -> list[dict[str, str]]:
    """A row for each case: its verdict before and after `lever`, and what became of it."""
    passed = {change: verdicts for verdicts, change in CHANGES.items()}
    rows = []
    for found in comparison.changes:
        before, after = (VERDICTS[verdict] for verdict in passed[found.change])
        cells = (found.case_id, found.risk, before, after, found.change, lever)
        rows.append(dict(zip(COLUMNS, cells, strict=True)))
    return rows
