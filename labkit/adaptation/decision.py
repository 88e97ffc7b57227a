"""Whether to fine-tune: the facts that decide it, the decision that follows from them, and the file that holds both.

"Do not fine-tune because one answer was bad." The decision is a function of counted facts, so that whoever reads
lora_decision.md back can draw it again. The file is written from `AdaptationDecision` and read back into it.
"""

import re
from dataclasses import dataclass, fields

from labkit.errors import LabError

NO_LORA, PREPARE_LORA, FULL_NOT_ALLOWED = "no_lora", "prepare_lora", "full_finetune_not_allowed"
DECISIONS = (NO_LORA, PREPARE_LORA, FULL_NOT_ALLOWED)
ASKS = ("lora", "full")
LEVERS = ("prompt", "schema", "rag", "quantization")  # cheapest first; the last makes a model smaller, never better
# The risks whose failures a cheaper lever can mend. A schema mends form, documents mend grounding, a prompt any.
HELPS = {
    "prompt": frozenset({"format", "grounding", "safety", "performance", "regression"}),
    "schema": frozenset({"format"}),
    "rag": frozenset({"grounding"}),
}
PRIVACY = ("public", "internal", "personal")
MINIMUM_EXAMPLES = 50  # different training examples below which an adapter learns them by heart
PLACEHOLDER = "_____"  # what the verifier reads as not filled in
NONE = "none"
NO_BASELINE = "fine-tuning without a failing baseline"
LEVER_COLUMNS = ("lever", "before", "after", "cases", "fixed", "broken", "regressions broken")
FAILURE_COLUMNS = ("case", "risk", "check")


@dataclass(frozen=True)
class Failure:
    """A case that failed in every repeat of the baseline, with its risk and its checks."""

    case_id: str
    risk: str
    check: str


@dataclass(frozen=True)
class Tried:
    """A run of the same cases with one lever: how many passed before and after, and the ids whose verdict changed.

    `regressions` are those broken ids whose risk is regression.
    """

    lever: str
    before: int
    after: int
    cases: int
    fixed: tuple[str, ...]
    broken: tuple[str, ...]
    regressions: tuple[str, ...]


@dataclass(frozen=True)
class Refusal:
    """Why something may not be done: a name, a sentence with the numbers, and what to do about it."""

    name: str
    sentence: str
    next_action: str


@dataclass(frozen=True)
class AdaptationDecision:
    """The facts. `decision`, `reason` and `next_action` follow from them and are never set by hand.

    `baseline` is the run's id where the pack has one. `trained` are the runs after LoRA and after full fine-tuning.
    `split` says how training and evaluation were kept apart; the overlaps were counted.
    """

    asked_for: str
    model: str
    revision: str
    baseline: str
    cases: int
    repeats: int
    failures: tuple[Failure, ...]
    levers: tuple[Tried, ...]
    trained: tuple[Tried, ...]
    training_examples: int
    different_examples: int
    exact_overlap: int
    near_overlap: int
    owner: str
    privacy: str
    consent: str
    split: str

    def run(self, name: str) -> Tried | None:
        return next((tried for tried in (*self.levers, *self.trained) if tried.lever == name), None)

    @property
    def remaining(self) -> tuple[Failure, ...]:
        """The repeated failures that no cheaper lever fixed."""
        fixed = {case_id for tried in self.levers if tried.lever in HELPS for case_id in tried.fixed}
        return tuple(failure for failure in self.failures if failure.case_id not in fixed)

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """Everything that speaks against it; the first is the reason."""
        against_lora = (*_no_need(self), *_bad_data(self), *_nobody_answers(self))
        return (*_full_forgets(self), *against_lora) if self.asked_for == "full" else against_lora

    @property
    def decision(self) -> str:
        names = {refusal.name for refusal in self.refusals}
        if names & FULL_REFUSALS:
            return FULL_NOT_ALLOWED
        return NO_LORA if names else PREPARE_LORA

    @property
    def reason(self) -> str:
        if found := self.refusals:
            return f"{found[0].name}: {found[0].sentence}"
        reason = (
            f"{len(self.remaining)} of {len(self.failures)} repeated failures are fixed by no cheaper lever, and "
            f"{self.different_examples} different examples overlap with no case"
        )
        if self.asked_for == "full":
            return f"{reason}; full fine-tuning broke no more than the adapter, which is the smaller change"
        return reason

    @property
    def next_action(self) -> str:
        if found := self.refusals:
            return found[0].next_action
        if self.run("lora"):
            return "read before_after.csv, and keep the adapter only if what it breaks may be broken"
        return "run `labkit lora`, then the same cases again, and give that run with --adapter-run"

    def as_markdown(self) -> str:
        """lora_decision.md. Raises LabError where a fact cannot stand in it (`from_markdown` must read it back)."""
        _ids(tuple(failure.case_id for failure in self.failures))
        named = "; ".join(refusal.name for refusal in self.refusals)
        head = {"Decision": self.decision, "Reason": self.reason, "Next action": self.next_action}
        head["Refusals"] = named or NONE
        lines = ["# LoRA decision", "", *(f"- {key}: {value}" for key, value in head.items())]
        lines += [f"- {_label(name)}: {_text(getattr(self, name))}" for name in SIMPLE]
        lines += [f"- Repeated failures: {len(self.failures)}", "", "## Repeated failures", ""]
        lines += _table(FAILURE_COLUMNS, [(row.case_id, row.risk, row.check) for row in self.failures])
        for title, runs in (("## Levers tried", self.levers), ("## Trained runs", self.trained)):
            lines += ["", title, "", *_table(LEVER_COLUMNS, [_tried_cells(run) for run in runs])]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_markdown(cls, text: str) -> "AdaptationDecision":
        """The facts of a lora_decision.md. Raises LabError naming the first that is missing or no number."""
        said = {key.lower(): value.strip() for key, value in re.findall(r"^- ([^:\n]+): ?(.*)$", text, re.M)}
        simple = {name: _parsed(name, said.get(_label(name).lower())) for name in SIMPLE}
        failures = tuple(Failure(*cells) for cells in _cells(text, "Repeated failures", FAILURE_COLUMNS))
        if _parsed("repeats", said.get("repeated failures"), "Repeated failures") != len(failures):
            raise LabError(f"it says {said['repeated failures']} repeated failures and lists {len(failures)}", AGAIN)
        levers = tuple(_tried(cells) for cells in _cells(text, "Levers tried", LEVER_COLUMNS))
        trained = tuple(_tried(cells) for cells in _cells(text, "Trained runs", LEVER_COLUMNS))
        return cls(**simple, failures=failures, levers=levers, trained=trained)


AGAIN = "run `labkit adapt-decision` again"
SIMPLE = tuple(
    field.name for field in fields(AdaptationDecision) if field.name not in ("failures", "levers", "trained")
)
NUMBERS = {field.name for field in fields(AdaptationDecision) if field.type is int}
FULL_REFUSALS = {"full fine-tuning was not measured", "full fine-tuning forgets more"}


def _full_forgets(facts: AdaptationDecision) -> tuple[Refusal, ...]:
    full, adapter = facts.run("full"), facts.run("lora")
    if full is None or adapter is None:
        missing = " and ".join(name for name, run in (("--full-run", full), ("--adapter-run", adapter)) if run is None)
        what = "what it forgets must stand beside what the adapter forgets, on the same cases"
        return (Refusal("full fine-tuning was not measured", what, f"evaluate it and give {missing}"),)
    if len(full.regressions) <= len(adapter.regressions):
        return ()
    lost = f"it breaks {len(full.regressions)} regression cases, the adapter {len(adapter.regressions)}"
    return (Refusal("full fine-tuning forgets more", lost, "keep to the adapter: ask for lora"),)


def _no_need(facts: AdaptationDecision) -> tuple[Refusal, ...]:
    """There is nothing to mend, or something cheaper mends it or was not tried."""
    if not facts.failures:
        what = f"none of {facts.cases} cases fails in every one of {facts.repeats} repeats"
        return (Refusal(NO_BASELINE, what, "add cases that the task needs and the model fails, and evaluate again"),)
    if not facts.remaining:
        used = [run.lever for run in facts.levers if run.lever in HELPS and run.fixed]
        what = f"all {len(facts.failures)} repeated failures are fixed by {', '.join(used)}"
        return (Refusal("a cheaper lever fixes it", what, f"use {' and '.join(used)}, and look at what it breaks"),)
    risks = {failure.risk for failure in facts.remaining}
    untried = [lever for lever, helped in HELPS.items() if helped & risks and facts.run(lever) is None]
    if not untried:
        return ()
    what = f"{', '.join(untried)} may fix failures of the risks {', '.join(sorted(risks))}"
    how = f"evaluate the same cases with {untried[0]} and give that run with --tried {untried[0]}=PACK"
    return (Refusal("a cheaper lever was not tried", what, how),)


def _bad_data(facts: AdaptationDecision) -> tuple[Refusal, ...]:
    found = []
    if facts.different_examples < MINIMUM_EXAMPLES:
        what = f"{facts.different_examples} different examples are fewer than {MINIMUM_EXAMPLES}"
        found.append(Refusal("too few training examples", what, "write more of them, all different"))
    if facts.exact_overlap or facts.near_overlap:
        what = f"{facts.exact_overlap} training prompts are evaluation prompts, {facts.near_overlap} nearly are"
        found.append(Refusal("train and eval overlap", what, "take those chats out of the training file"))
    return tuple(found)


def _nobody_answers(facts: AdaptationDecision) -> tuple[Refusal, ...]:
    found = []
    if not _said(facts.owner):
        found.append(Refusal("no owner", "nobody answers for the adapter", "name a person or a team with --owner"))
    if not _said(facts.privacy):
        what = "what the training data reveals was not said"
        found.append(Refusal("no privacy class", what, f"give --privacy {', '.join(PRIVACY)}"))
    elif facts.privacy == "personal" and not _said(facts.consent):
        what = "the training data is personal, and weights cannot forget a person who asks for it"
        found.append(Refusal("personal data without consent", what, "say who consented and where with --consent"))
    return tuple(found)


def _said(text: str) -> bool:
    return bool(text.strip()) and text.strip().lower() not in (PLACEHOLDER, NONE, "unknown", "todo", "tbd", "?", "-")


def _label(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _text(value: object) -> str:
    text = " ".join(str(value).split())
    return text or PLACEHOLDER


def _parsed(name: str, text: str | None, label: str = "") -> object:
    if text is None:
        raise LabError(f"it has no line {label or _label(name)}", AGAIN)
    if name not in NUMBERS:
        return "" if text == PLACEHOLDER else text
    if not text.isdecimal():
        raise LabError(f"{label or _label(name)} is {text[:40]!r}, not a whole number", AGAIN)
    return int(text)


def _table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    head = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return [*head, *(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)]


def _tried_cells(run: Tried) -> tuple[str, ...]:
    counts = (run.lever, str(run.before), str(run.after), str(run.cases))
    return counts + tuple(_ids(ids) for ids in (run.fixed, run.broken, run.regressions))


def _ids(ids: tuple[str, ...]) -> str:
    if odd := [case_id for case_id in ids if re.search(r"[,|\s]", case_id) or case_id == NONE]:
        raise LabError(f"the case id {odd[0]!r} cannot stand in a list", "name cases without commas, bars and spaces")
    return ", ".join(ids) or NONE


def _cells(text: str, title: str, columns: tuple[str, ...]) -> list[list[str]]:
    section = re.search(rf"^## {title}\s*\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    lines = [line for line in section[1].splitlines() if line.startswith("|")] if section else []
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    if not rows or rows[0] != list(columns) or any(len(row) != len(columns) for row in rows[2:]):
        raise LabError(f"it has no table {title} with the columns {', '.join(columns)}", AGAIN)
    return rows[2:]


def _tried(cells: list[str]) -> Tried:
    lever, *counts = cells[:4]
    if not all(count.isdecimal() for count in counts):
        raise LabError(f"the counts of {lever[:40]} are no whole numbers", AGAIN)
    lists = (() if cell == NONE else tuple(part.strip() for part in cell.split(",")) for cell in cells[4:])
    return Tried(lever, *(int(count) for count in counts), *lists)
