"""Lesson 13.7: what was converted, whether its answers are still the source's, and what follows from it."""

from labkit.edge.decision import EdgeDecision, decide_export, label_of
from labkit.edge.measures import GROWTH_LIMIT, growth_of, slope_of
from labkit.errors import LabError
from labkit.evaluation.compare import compare_runs, read_run
from labkit.export.inference_model import INFERENCE_MODEL, check_inference_model
from labkit.verification.reading import PackReader
from labkit.verification.verdicts import Contradiction, NotYet

REPORT, CHECKLIST = "edge_report.json", "quality_checklist.json"
RUNS = "edge"
_CHECK = ("cases", "answers_differ", "share", "limit", "flagged", "passed", "broken", "fixed")
_CARD = ("kind", "precision", "tool", "source", "files", "versions", "command", "check")


def check_report(pack: PackReader) -> str:
    """The decision is the one that follows from the exports, and each check is what the answers in the pack say."""
    report = _present(pack.json(REPORT), ("exports", "decision"), REPORT)
    exports = report["exports"]
    if not isinstance(exports, list) or not exports:
        raise NotYet(f"{REPORT} has no exports")
    made = [export for export in exports if not _not_run(export)]
    for export in made:
        _check_export(pack, export)
    if not made:
        raise NotYet(f"{REPORT}: no export was made: {_not_run(exports[0])}")
    decided = _decided(exports)
    said = _present(report["decision"], ("choice", "refused"), REPORT)
    if (said["choice"], said["refused"]) != (decided.choice, decided.refused):
        raise Contradiction(f"{REPORT} says {said['choice']}, its own exports say {decided.choice}")
    missed = [label_of(export) for export in exports if _not_run(export)]
    told = f"; not run: {', '.join(missed)}" if missed else ""
    return f"{decided.choice}: {decided.reason}{told}"


def _present(value: object, keys: tuple[str, ...], where: str) -> dict:
    """As `require_keys`, where a value may be empty: no case differs, nothing was refused, there was no adapter."""
    if not isinstance(value, dict):
        raise NotYet(f"{where} is not an object")
    if missing := [key for key in keys if value.get(key) is None]:
        raise NotYet(f"{where} lacks {', '.join(missing)}")
    return value


def _decided(exports: list[dict]) -> EdgeDecision:
    try:
        return decide_export(exports)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise NotYet(f"{REPORT} is not a report of lesson 13.7: its exports have no sizes or checks") from None


def _not_run(export: object) -> str:
    if not isinstance(export, dict) or not {"kind", "precision"} <= export.keys():
        raise NotYet(f"{REPORT} holds an export without kind and precision")
    return str(export.get("not_run") or "")


def _check_export(pack: PackReader, export: dict) -> None:
    name = label_of(export)
    _present(export, _CARD, f"{REPORT}, {name}")
    check = _present(export["check"], _CHECK, f"{REPORT}, {name}, check")
    try:
        folder = pack.path(RUNS)
        before, after = (read_run(folder / run.replace(" ", "-")) for run in ("source", name))
        found = compare_runs(before, after)
        share, limit = float(check["share"]), float(check["limit"])
    except LabError as error:
        raise NotYet(f"{name}: {error.what}") from None
    except (TypeError, ValueError):
        raise NotYet(f"{REPORT}, {name}: share and limit are not numbers") from None
    differ = [case for case, row in before.rows.items() if row["output"] != after.rows[case]["output"]]
    counted = {"answers_differ": differ, "broken": found.ids("broken"), "fixed": found.ids("fixed")}
    if any(check[key] != list(ids) for key, ids in counted.items()):
        raise Contradiction(f"{REPORT} and the answers below {RUNS}/ differ for {name}")
    if abs(share - len(differ) / len(found.changes)) > 1e-3 or check["flagged"] != (share > limit):
        raise Contradiction(f"{REPORT}, {name}: {len(differ)} of {len(found.changes)} answers differ, it says {share}")


def check_checklist(pack: PackReader) -> str:
    """Slope and growth are those of the measurements beside them, and no item passes against them."""
    found = _present(pack.json(CHECKLIST), ("items", "latencies", "memory", "slope", "growth", "passed"), CHECKLIST)
    try:
        slope = slope_of([(row["tokens"], 1000 * row["seconds"]) for row in found["latencies"]])
        growth = growth_of(found["memory"])
        items = {str(item["name"]): bool(item["passed"]) for item in found["items"]}
        said = (float(found["slope"]), float(found["growth"]))
    except (KeyError, TypeError, ValueError):
        raise NotYet(f"{CHECKLIST} is not a checklist of `labkit edge-check`") from None
    if abs(slope - said[0]) > 1e-6 * max(1, abs(slope)) or abs(growth - said[1]) > 1e-6 * max(1, abs(growth)):
        raise Contradiction(f"{CHECKLIST}: slope and growth are not those of its measurements")
    if items.get("memory growth") != (growth <= GROWTH_LIMIT) or found["passed"] != all(items.values()):
        raise Contradiction(f"{CHECKLIST}: what it says of its items is not what was measured")
    failed = [name for name, passed in items.items() if not passed]
    told = f"not held: {', '.join(failed)}" if failed else "all held"
    return f"{len(items)} items, {told}; {slope:.3f} ms a token of the prompt"


def check_inference(pack: PackReader) -> str:
    """inference_model.json keeps to its schema."""
    held = pack.json(INFERENCE_MODEL)
    try:
        check_inference_model(held)
    except LabError as error:
        raise NotYet(error.what) from None
    return f"{held['Name']}, with the roles {', '.join(held['PromptTemplate'])}"
