"""Lesson 13.6: the decision for or against LoRA, the adapter, and what it changed."""

import re
from pathlib import Path

from labkit.adaptation.decision import NO_BASELINE, SIMPLE, AdaptationDecision, Failure, Tried
from labkit.errors import LabError
from labkit.evaluation.compare import CHANGES
from labkit.evidence import sha256_of
from labkit.levers.plan import CASES, FOLDER, PLAIN, RESULTS
from labkit.levers.table import COLUMNS, read_table
from labkit.levers.table import TABLE as LEVER_TABLE
from labkit.verification import answer_checks as answers
from labkit.verification import decision_checks as decision
from labkit.verification import service_checks as service
from labkit.verification.reading import PackReader, per_pack, require_filled, require_keys
from labkit.verification.timing_checks import made_again
from labkit.verification.verdicts import Contradiction, NotYet

DECISION, BEFORE_AFTER, ADAPTER = "lora_decision.md", "before_after.csv", "adapter/"
CONFIG, WEIGHTS, CARD = (
    f"{ADAPTER}{name}" for name in ("adapter_config.json", "adapter_model.safetensors", "card.json")
)
ADAPTER_FILES = (CONFIG, WEIGHTS, CARD)
AFTER_NEXT = "run `labkit adapt-decision` with --adapter-run"
WEIGHTS_LIMIT = 2 * 2**30  # bytes; rank 256 on the seven projections of a 70 B model is below it
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle"}
_COLUMNS = ("case_id", "risk", "before", "after", "change", "lever")
_LEVER_CASES = f"{FOLDER}/{CASES}"
_PASSED = {"pass": True, "fail": False}


@per_pack
def facts_of(pack: PackReader) -> AdaptationDecision:
    """The facts of lora_decision.md, every field filled."""
    keys = ("Decision", "Reason", "Next action", "Refusals", *(name.replace("_", " ").capitalize() for name in SIMPLE))
    pack.fields(DECISION, keys)
    try:
        return AdaptationDecision.from_markdown(pack.text(DECISION))
    except LabError as error:
        raise NotYet(f"{DECISION}: {error.what}") from None


def check_decision(pack: PackReader) -> str:
    """Decision and refusals are those that follow from the facts, and the facts do not contradict themselves."""
    said = pack.fields(DECISION, ("Decision", "Refusals"))
    facts = facts_of(pack)
    for run in (*facts.levers, *facts.trained):
        _check_counts(facts, run)
    named = "; ".join(refusal.name for refusal in facts.refusals) or "none"
    if said["Decision"] == "prepare_lora" and not facts.failures:
        raise Contradiction(f"{NO_BASELINE}: {DECISION} says prepare_lora and lists no repeated failure")
    if (said["Decision"], said["Refusals"]) != (facts.decision, named):
        raise Contradiction(
            f"{DECISION} says {said['Decision']} (refusals: {said['Refusals']}), its own facts say {facts.decision} "
            f"(refusals: {named})"
        )
    if _numbers(reason := pack.fields(DECISION, ("Reason",))["Reason"]) != _numbers(facts.reason):
        raise NotYet(f"{DECISION} gives the reason {reason[:80]!r}, its own facts say {facts.reason[:80]!r}")
    tried = ", ".join(run.lever for run in facts.levers) or "none"
    return f"{facts.decision}: {len(facts.failures)} repeated failures of {facts.cases} cases; levers tried: {tried}"


def _numbers(text: str) -> list[str]:
    return re.findall(r"\d+", text)


def _check_counts(facts: AdaptationDecision, run: Tried) -> None:
    where = f"{DECISION}, {run.lever}"
    if run.cases != facts.cases:
        raise Contradiction(f"{where}: {run.cases} cases, the baseline has {facts.cases}")
    if run.after != run.before + len(run.fixed) - len(run.broken):
        raise Contradiction(
            f"{where}: {run.before} passed, {len(run.fixed)} fixed and {len(run.broken)} broken do not make {run.after}"
        )
    if run.before > facts.cases - len(facts.failures):
        raise Contradiction(f"{where}: {run.before} passed before, and {len(facts.failures)} of {facts.cases} failed")
    if not set(run.regressions) <= set(run.broken) or set(run.fixed) & set(run.broken):
        raise Contradiction(f"{where}: the lists of fixed, broken and regressions contradict each other")


def check_baseline(pack: PackReader) -> str:
    """The repeated failures are those of the pack's evaluation, where it is the run that was decided from."""
    facts = facts_of(pack)
    rows = service.result_rows(pack)
    run = str(pack.json(service.SUMMARY).get("run_id") or "none") if pack.exists(service.SUMMARY) else "none"
    named = (rows[0]["model"], rows[0]["revision"])
    groups: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(row["case_id"], []).append(row)
    if run != facts.baseline and "none" not in (run, facts.baseline):
        return f"{service.RESULTS} is the run {run}, the decision rests on {facts.baseline}; they were not compared"
    if named != (facts.model, facts.revision) or len(groups) != facts.cases:
        return f"{service.RESULTS} is of another model or other cases than the decision; they were not compared"
    failed = [group[0] for group in groups.values() if all(row["pass"] == "false" for row in group)]
    counted = {Failure(row["case_id"], row["risk"], " ".join(row["check"].replace("|", "/").split())) for row in failed}
    if odd := counted ^ set(facts.failures):
        made_again(pack, service.RESULTS, DECISION)
        ids = ", ".join(sorted({failure.case_id for failure in odd}))
        without = f"{NO_BASELINE}: " if facts.decision == "prepare_lora" and not counted else ""
        sides = f"{DECISION} lists {len(facts.failures)} repeated failures, {service.RESULTS} has {len(counted)}"
        raise Contradiction(f"{without}{sides}: {ids}")
    return f"the {len(counted)} repeated failures are those of {service.RESULTS}"


@per_pack
def change_rows(pack: PackReader) -> list[dict[str, str]]:
    """The rows of before_after.csv: each case once, verdicts pass or fail, and the change that they make."""
    rows = pack.rows(BEFORE_AFTER, _COLUMNS)
    ids = [row["case_id"] for row in rows]
    if len(set(ids)) < len(ids):
        raise NotYet(f"{BEFORE_AFTER} has a case twice")
    for row in rows:
        where = f"{BEFORE_AFTER} {row['case_id']}"
        require_filled({key: row[key] for key in _COLUMNS}, where)
        if row["before"] not in _PASSED or row["after"] not in _PASSED:
            raise NotYet(f"{where}: before and after are not pass or fail")
        change = CHANGES[_PASSED[row["before"]], _PASSED[row["after"]]]
        if row["change"] != change:
            raise Contradiction(
                f"{where}: {row['before']} before, {row['after']} after is {change}, not {row['change']}"
            )
    return rows


def check_before_after(pack: PackReader) -> str:
    rows = change_rows(pack)
    counts = {change: sum(row["change"] == change for row in rows) for change in CHANGES.values()}
    lost = sum(row["change"] == "broken" and row["risk"] == "regression" for row in rows)
    return f"{counts['fixed']} fixed, {counts['broken']} broken of {len(rows)}; regression cases lost: {lost}"


def check_changes(pack: PackReader) -> str:
    """before_after.csv has the ids that the decision counts as fixed and broken, and loses no regression case more."""
    if not pack.exists(BEFORE_AFTER):
        adapter = pack.exists(DECISION) and facts_of(pack).run("lora")
        if adapter:
            raise NotYet(f"{DECISION} counts a run after LoRA, and {BEFORE_AFTER} is missing")
        return "no run after LoRA is claimed"
    rows, run = change_rows(pack), facts_of(pack).run("lora")
    if run is None:
        raise NotYet(f"{BEFORE_AFTER} is there, and {DECISION} knows no run after LoRA")
    lost = {row["case_id"] for row in rows if row["change"] == "broken" and row["risk"] == "regression"}
    if beyond := sorted(lost - set(run.regressions)):
        raise Contradiction(f"{BEFORE_AFTER} loses regression cases that {DECISION} does not say: {', '.join(beyond)}")
    for change, said in (("fixed", run.fixed), ("broken", run.broken)):
        found = {row["case_id"] for row in rows if row["change"] == change}
        if odd := found ^ set(said):
            raise Contradiction(f"{change}: {BEFORE_AFTER} and {DECISION} differ in {', '.join(sorted(odd))}")
    if len(rows) != run.cases:
        raise Contradiction(f"{BEFORE_AFTER} has {len(rows)} cases, {DECISION} says {run.cases}")
    return f"{len(run.fixed)} fixed and {len(run.broken)} broken in both"


def check_lever_table(pack: PackReader) -> str:
    """lever_table.csv is what the runs below levers/ say, row for row, and each run what its answers say."""
    said = [tuple(row.values()) for row in pack.rows(LEVER_TABLE, COLUMNS)]
    runs = [name for name in pack.entries if name.startswith(f"{FOLDER}/")]
    for path in (pack.folder / FOLDER).rglob("*.*"):  # read_table reads whatever is there
        pack.file(path.relative_to(pack.folder).as_posix())
    try:
        table = read_table(pack.folder)
    except LabError as error:
        raise NotYet(f"{LEVER_TABLE}: {error.what}") from None
    counted = [tuple(str(row[name]) for name in COLUMNS) for row in table.as_rows()]
    if said != counted:
        for run in runs:
            made_again(pack, run, LEVER_TABLE)
        odd = next((row for row in [*said, *counted] if (row in said) != (row in counted)), said[0])
        raise Contradiction(f"{LEVER_TABLE} and the runs below {FOLDER}/ differ, first in {' '.join(odd[:3])}")
    cases = pack.rows(_LEVER_CASES, ("case_id", "check", "expected"))
    for run in (name for name in runs if name.endswith(f"/{RESULTS}")):
        answers.require_verdicts(pack, run, pack.rows(run, answers.COLUMNS), cases, _LEVER_CASES)
    broken = {lever: len(table.broken(lever)) for lever in table.levers if lever != PLAIN.name}
    told = ", ".join(f"{lever} {count}" for lever, count in broken.items()) or "none"
    return f"{len(table.rows)} runs of {len(table.groups)} groups of cases; cases broken: {told}"


def check_adapter(pack: PackReader) -> str:
    """The adapter loads as safetensors, has a matrix pair of the stated rank for its targets, and is no pickle."""
    folder = pack.path(ADAPTER)
    if pickles := sorted(path.name for path in folder.rglob("*") if path.suffix in PICKLES):
        raise NotYet(f"{ADAPTER} holds {', '.join(pickles)}: a pickle can run code when it is loaded, so none is read")
    config = require_keys(pack.json(CONFIG), ("peft_type", "r", "target_modules"), CONFIG)
    card = require_keys(pack.json(CARD), ("base_model", "base_revision"), CARD)
    if config["peft_type"] != "LORA":
        raise NotYet(f"{CONFIG} is of the type {str(config['peft_type'])[:40]!r}, not LORA")
    shapes = _matrices(pack)
    ranks = {shape[0] for name, shape in shapes.items() if "lora_A" in name}
    if ranks != {config["r"]}:
        raise Contradiction(f"{CONFIG} says rank {config['r']}, the matrices have {sorted(ranks)}")
    trained = {name.split(".lora_A")[0].rpartition(".")[2] for name in shapes if ".lora_A" in name}
    if isinstance(config["target_modules"], list) and trained != set(config["target_modules"]):
        raise Contradiction(
            f"{CONFIG} targets {sorted(config['target_modules'])}, the matrices are of {sorted(trained)}"
        )
    numbers = sum(rows * columns for rows, columns in shapes.values())
    _check_card(config, card, numbers)
    return f"rank {config['r']} on {len(trained)} projections, {numbers:,} numbers, for {card['base_model']}"


def _check_card(config: dict, card: dict, numbers: int) -> None:
    """The base and the size that the card says are those of the adapter beside it, where both say them.

    peft's file holds where the base was loaded from: a folder that ends in the name, or the name with its owner.
    """
    base = config.get("base_model_name_or_path")
    if base and not f"/{base}".replace("\\", "/").rstrip("/").endswith(f"/{card['base_model']}"):
        raise Contradiction(f"{CARD} says the base {card['base_model']}, {CONFIG} says {base}")
    trained = card.get("trainable_parameters", numbers)
    if trained != numbers:
        raise Contradiction(f"{CARD} says {trained} trained parameters, {WEIGHTS} holds {numbers}")


def _matrices(pack: PackReader) -> dict[str, tuple[int, int]]:
    """Name and shape of each matrix. Raises NotYet for what is no safetensors file, and where every B is still zero."""
    from safetensors import SafetensorError, safe_open

    path = pack.file(WEIGHTS, limit=WEIGHTS_LIMIT)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
    except (SafetensorError, OSError) as error:
        raise NotYet(f"{WEIGHTS} is not readable safetensors: {error}") from None
    matrices = {name: tensor for name, tensor in tensors.items() if "lora_A" in name or "lora_B" in name}
    odd = [name for name, tensor in matrices.items() if tensor.ndim != 2 or not bool(tensor.isfinite().all())]
    if not matrices or odd:
        raise NotYet(f"{WEIGHTS}: {', '.join(odd[:3]) or 'no tensor'} is not a finite LoRA matrix")
    if not any(bool(tensor.any()) for name, tensor in matrices.items() if "lora_B" in name):
        raise NotYet(f"{WEIGHTS}: every B is zero, so the adapter was never trained")
    return {name: tuple(tensor.shape) for name, tensor in matrices.items()}


def check_base(pack: PackReader) -> str:
    """The card's base is the decided model, or that of which, alone or with this adapter, the decided one was made: an
    adapter of another model is no part of this pack."""
    card = require_keys(pack.json(CARD), ("base_model", "base_revision"), CARD)
    if not pack.exists(decision.MODEL_DECISION):
        return f"{decision.MODEL_DECISION} is not there to compare with"
    decided = pack.fields(decision.MODEL_DECISION, ("Model", "Revision"))
    base = str(card["base_model"])
    known = Path(base).name if decided["Model"] == Path(base).name else base  # a folder's name stands for a folder
    said = (known, str(card["base_revision"]))
    if said != (decided["Model"], decided["Revision"]):
        if (made_from := decided.get("Made from", "")) and made_from in _made_from(pack, " at ".join(said)):
            return f"{decided['Model']} was made from {made_from}"
        other = f"{decision.MODEL_DECISION} says {decided['Model']} at {decided['Revision']}"
        raise NotYet(f"{CARD} says {said[0]} at {said[1]}, {other}")
    return f"{said[0]} at {said[1]} in both"


def _made_from(pack: PackReader, base: str) -> tuple[str, str]:
    """What a decided model of this `base` may say that it was made from: the base as it was, or with the adapter."""
    return base, f"{base}+{sha256_of(pack.file(WEIGHTS, limit=WEIGHTS_LIMIT))[:12]}"
