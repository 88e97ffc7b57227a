"""The decision of 13.6 and its adapter against the runs below levers/: what a lever is said to mend, a run shows."""

import re
from collections.abc import Iterator
from pathlib import Path

from labkit.adaptation.decision import Tried
from labkit.evaluation.compare import Run, compare_runs, read_run
from labkit.evidence import finite, sha256_of
from labkit.levers.plan import FOLDER, PLAIN, RESULTS, RUN
from labkit.verification import adaptation_checks as adaptation
from labkit.verification.reading import PackReader
from labkit.verification.timing_checks import made_again
from labkit.verification.verdicts import Contradiction, NotYet

ADAPTER_LOG = f"{adaptation.ADAPTER}training_log.csv"
_LEVERS = {"quantization": ("int8", "nf4")}  # the runs that stand for a lever of the decision
_TARGET = {"model": "model", "revision": "revision", "backend": "backend", "quantization": "dtype"}
_DIGITS = 1.1e-4  # to which losses are rounded
_ALONE = re.compile(rf"{FOLDER}/([\w.-]{{1,60}})/{re.escape(RESULTS)}")


def check_runs(pack: PackReader) -> str:
    """Each run has the settings of its lever, the decision counts what the runs show, and the adapter is the one that
    answered."""
    runs = {match[1]: match[0] for match in map(_ALONE.fullmatch, pack.entries) if match and pack.exists(match[0])}
    for name, file in runs.items():
        _check_settings(pack, name, file)
    if pack.exists(adaptation.CARD):
        _check_log(pack)
        _check_adapter(pack, runs)
    told = _check_decision(pack, runs) if pack.exists(adaptation.DECISION) and PLAIN.name in runs else 0
    return f"{len(runs)} runs are of their levers, and {told} of them stand in the decision as they are"


def _check_settings(pack: PackReader, name: str, file: str) -> None:
    """The rows of a run say the lever and the model that its run.json says."""
    if not pack.exists(facts := f"{FOLDER}/{name}/{RUN}"):
        return
    held = pack.json(facts)
    lever, target = held.get("lever") or {}, held.get("target") or {}
    for row in pack.rows(file, ("case_id",)):
        for column, key in _TARGET.items():
            if row.get(column) and target.get(key) and row[column] != str(target[key]):
                said = f"{file} says {column} {row[column][:40]}, {facts} says {str(target[key])[:40]}"
                raise Contradiction(said)
        kinds = {part.partition(" ")[0] for part in row.get("levers", "").split(" + ")}
        wanted = {"schema": lever.get("constrained"), "rag": lever.get("rag"), "prompt": bool(lever.get("prompt"))}
        if odd := [
            kind for kind, on in wanted.items() if row.get("levers") and on is not None and (kind in kinds) != on
        ]:
            raise Contradiction(f"{file} was answered with {row['levers'][:40]}, {facts} says otherwise of {odd[0]}")


def _check_decision(pack: PackReader, runs: dict[str, str]) -> int:
    """How many runs of the decision are below levers/. "Not yet" where one is not, as it may be of other runs."""
    facts, told = adaptation.facts_of(pack), 0
    plain = read_run(pack.file(runs[PLAIN.name]))
    if len(plain.rows) != facts.cases:
        return 0
    for tried in (*facts.levers, *facts.trained):
        wanted = _LEVERS.get(tried.lever, (tried.lever,))
        held = [name for name in runs if name in wanted or re.sub(r"-\d+$", "", name) in wanted]
        if held and not any(_same(tried, plain, read_run(pack.file(runs[name]))) for name in held):
            what = f"{adaptation.DECISION} counts {tried.after} passed with {tried.lever}"
            if tried.lever == "lora" and _answered_by(pack, runs, held):
                for name in held:
                    made_again(pack, runs[name], adaptation.DECISION)
                raise Contradiction(f"{what}, {runs[held[0]]} of this very adapter shows other changes")
            raise NotYet(f"{what}, and no run of it below {FOLDER}/ shows those changes")
        told += bool(held)
    return told


def _same(tried: Tried, plain: Run, run: Run) -> bool:
    found = compare_runs(plain, run)
    return (set(tried.fixed), set(tried.broken)) == (set(found.ids("fixed")), set(found.ids("broken")))


def _answered_by(pack: PackReader, runs: dict[str, str], names: list[str]) -> bool:
    if not pack.exists(adaptation.WEIGHTS):
        return False
    sha = pack.once(lambda _: sha256_of(pack.file(adaptation.WEIGHTS, adaptation.WEIGHTS_LIMIT)), "sha of the adapter")
    return any(sha.startswith(revision) for revision in _adapters(pack, [runs[name] for name in names]))


def _adapters(pack: PackReader, files: list[str]) -> Iterator[str]:
    """What the revisions of runs say of their adapter: twelve digits of its sha256 after the plus."""
    for file in files:
        _, plus, adapter = pack.rows(file, ("case_id",))[0].get("revision", "").partition("+")
        if plus and adapter:
            yield adapter


def _check_adapter(pack: PackReader, runs: dict[str, str]) -> None:
    trained = [name for name in runs if re.fullmatch(r"lora(?:-\d+)?", name)]
    if trained and list(_adapters(pack, [runs[name] for name in trained])) and not _answered_by(pack, runs, trained):
        raise NotYet(f"{adaptation.ADAPTER} is none of the adapters that answered {runs[trained[0]]}")
    card = pack.json(adaptation.CARD)
    files = card.get("files")
    chats = files.get("data", {}).get("chats") if isinstance(files, dict) else None
    if chats and pack.exists(adaptation.DECISION) and (said := adaptation.facts_of(pack).training_examples) != chats:
        raise NotYet(f"{adaptation.CARD} was trained on {chats} chats, {adaptation.DECISION} counts {said}")


def _check_log(pack: PackReader) -> None:
    """The losses of the card are those of the log beside it."""
    card = pack.json(adaptation.CARD)
    if not pack.exists(ADAPTER_LOG):
        return
    rows = pack.rows(ADAPTER_LOG, ("step", "val_loss"))
    kept = next((row for row in rows if finite(row["step"]) == finite(card.get("kept_step", -1))), None)
    for key, row in (("held_out_loss_before", rows[0]), ("held_out_loss_after", kept)):
        said, logged = finite(card.get(key)), finite(row["val_loss"]) if row else None
        if said is not None and logged is not None and abs(said - logged) > _DIGITS:
            raise Contradiction(f"{adaptation.CARD} says {key} {said:g}, {Path(ADAPTER_LOG).name} says {logged:g}")
