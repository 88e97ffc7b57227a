"""Lesson 13.7: what was converted, whether its answers are still the source's, and what follows from it."""

import re

from labkit.edge.decision import SOURCE, EdgeDecision, decide_export, label_of, size_of
from labkit.edge.fidelity import LIMIT
from labkit.edge.measures import EdgeCase, Latency, growth_of, measured_items, slope_of
from labkit.errors import LabError
from labkit.evaluation.checks import untimed
from labkit.evaluation.compare import Run, compare_runs, read_run
from labkit.export.inference_model import INFERENCE_MODEL, check_inference_model
from labkit.verification import answer_checks as answers
from labkit.verification import decision_checks as decision
from labkit.verification import service_checks as service
from labkit.verification.reading import PackReader, number
from labkit.verification.timing_checks import made_again
from labkit.verification.verdicts import Contradiction, NotYet

REPORT, CHECKLIST = "edge_report.json", "quality_checklist.json"
RUNS = "edge"
_ANSWERED = {"domain answers": False, "output structure": True}  # whether its cases are those of the risk format
_CHECK = ("cases", "answers_differ", "share", "limit", "flagged", "passed", "broken", "fixed")
_CARD = ("kind", "precision", "tool", "source", "files", "versions", "command", "check")
_BACKENDS = {"onnx": "onnx", "gguf": "llama.cpp"}  # what runs each kind of export
_SHA256 = re.compile("[0-9a-f]{64}")
_DIGITS = 12  # of a sha256 that are a revision


def check_report(pack: PackReader) -> str:
    """The decision is the one that follows from the exports, and each check is what the answers in the pack say.

    Answers that are newer than the report are those of a 13.7 that was begun again and did not come to its end.
    """
    try:
        return _check_report(pack)
    except Contradiction:
        for answered in (name for name in pack.entries if name.startswith(f"{RUNS}/")):
            made_again(pack, answered, REPORT)
        raise


def _check_report(pack: PackReader) -> str:
    report = _present(pack.json(REPORT), ("exports", "decision"), REPORT)
    exports = report["exports"]
    if not isinstance(exports, list) or not exports:
        raise NotYet(f"{REPORT} has no exports")
    made = [export for export in exports if not _not_run(export)]
    if not made:
        raise NotYet(f"{REPORT}: no export was made: {_not_run(exports[0])}")
    decided = _decided(exports)
    for export in made:
        _check_export(pack, export)
    for dtype, check in _present(report.get("formats", {}), (), f"{REPORT}, formats").items():
        _check_format(pack, dtype, check)
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
    _present(export, _CARD, f"{REPORT}, {label_of(export)}")
    _check_origin(pack, export, *_check_answers(pack, label_of(export), export["check"]))


def _check_format(pack: PackReader, dtype: str, check: object) -> None:
    """The source's own weights in another number format."""
    before, after = (run.settings for run in _check_answers(pack, dtype, check))
    if (after.get("revision"), after.get("quantization")) != (before.get("revision"), dtype):
        raise Contradiction(f"{_answers(dtype)} was not answered by the source in {dtype}, as {REPORT} says")


def _check_answers(pack: PackReader, name: str, check: object) -> tuple[Run, Run]:
    """The source's answers and those of the run `name`, of which `check` says what the pack's files do."""
    check = _present(check, _CHECK, f"{REPORT}, {name}, check")
    try:
        before, after = (_run(pack, run) for run in (SOURCE, name))
        found = compare_runs(before, after)
        share, limit = float(check["share"]), float(check["limit"])
    except LabError as error:
        raise NotYet(f"{name}: {error.what}") from None
    except (TypeError, ValueError):
        raise NotYet(f"{REPORT}, {name}: share and limit are not numbers") from None
    differ = [case for case, row in before.rows.items() if row["output"] != after.rows[case]["output"]]
    listed = {"answers_differ": differ, "broken": found.ids("broken"), "fixed": found.ids("fixed")}
    counted: dict[str, object] = {key: list(ids) for key, ids in listed.items()}
    passed = {"passed": sum(map(after.passed, after.rows)), "source_passed": sum(map(before.passed, before.rows))}
    counted |= {"cases": len(found.changes)} | passed
    if odd := [key for key, value in counted.items() if check.get(key, value) != value]:
        raise Contradiction(f"{REPORT} and the answers below {RUNS}/ differ for {name}: {', '.join(odd)}")
    if abs(share - len(differ) / len(found.changes)) > 1e-3 or check["flagged"] != (share > limit):
        raise Contradiction(f"{REPORT}, {name}: {len(differ)} of {len(found.changes)} answers differ, it says {share}")
    for run in (SOURCE, name):
        pack.once(lambda _, run=run: _require_verdicts(pack, run), (_require_verdicts, run))
    return before, after


def _run(pack: PackReader, name: str) -> Run:
    return pack.once(lambda _: read_run(pack.file(_answers(name))), (read_run, name))


def _require_verdicts(pack: PackReader, run: str) -> int:
    """The cases were asked without their limits of time; in packs of before with them."""
    cases = service.case_rows(pack) if pack.exists(service.CASES) else []
    asked = [*cases, *({**case, "check": untimed(case["check"])} for case in cases)]
    return answers.require_verdicts(pack, _answers(run), pack.rows(_answers(run), answers.COLUMNS), asked)


def _answers(run: str) -> str:
    return f"{RUNS}/{run.replace(' ', '-')}/eval_results.csv"


def _check_origin(pack: PackReader, export: dict, before: Run, after: Run) -> None:
    """The answers are of the files that the card lists and of the source that it names, as their revisions say: the
    first digits of the sha256 of the weights."""
    name = label_of(export)
    hashes = [str(held["sha256"]) for held in export["files"].values()]
    if not all(map(_SHA256.fullmatch, hashes)):
        raise NotYet(f"{REPORT}, {name}: a file has no sha256")
    ran = after.settings
    revision = ran.get("revision", "")
    if len(revision) < _DIGITS or not any(sha.startswith(revision) for sha in hashes):
        what = f"{_answers(name)} is of the revision {revision or 'nothing'}"
        raise Contradiction(f"{what}, and none of the card's files in {REPORT} has that sha256")
    if ran.get("backend", _BACKENDS.get(export["kind"])) != _BACKENDS.get(export["kind"]):
        raise Contradiction(f"{_answers(name)} was answered by {ran['backend']}, the card says {name}")
    source = before.settings.get("revision")
    if not export.get("adapter") and source != export["source"].get("revision"):
        said = export["source"].get("revision")
        raise Contradiction(f"{_answers(SOURCE)} is of the revision {source}, the card of {name} says {said}")
    _check_size(pack, export)


def _check_size(pack: PackReader, export: dict) -> None:
    """No number format has less than a bit for each parameter, where it is the decided model that was converted."""
    for file, held in export["files"].items():
        number(held["bytes"], f"bytes of {file[:40]} in {REPORT}", minimum=1)
    if not pack.exists(decision.MODEL_DECISION):
        return
    decided = pack.fields(decision.MODEL_DECISION, ("Revision", "Size"))
    parameters = 1e9 * (decision.billions(decided["Size"]) or 0)
    if decided["Revision"] == export["source"].get("revision") and size_of(export) < parameters / 8:
        what = f"{REPORT}, {label_of(export)}: {size_of(export)} bytes"
        raise Contradiction(f"{what} are less than a bit for each of {parameters:,.0f} parameters")


def check_checklist(pack: PackReader) -> str:
    """Slope and growth are those of the measurements beside them, and no item passes against them."""
    found = _present(pack.json(CHECKLIST), ("items", "latencies", "memory", "slope", "growth", "passed"), CHECKLIST)
    try:
        latencies = [Latency(**row) for row in found["latencies"]]
        slope = slope_of([(row.tokens, 1000 * row.seconds) for row in latencies])
        growth = growth_of(found["memory"])
        edges = [EdgeCase(**row) for row in found["edge_cases"]]
        wanted = measured_items(latencies, slope, growth, found["memory"][-1][0], edges)
        items = {str(item["name"]): bool(item["passed"]) for item in found["items"]}
        said = (float(found["slope"]), float(found["growth"]))
    except (ArithmeticError, LookupError, TypeError, ValueError):
        raise NotYet(f"{CHECKLIST} is not a checklist of `labkit edge-check`") from None
    if abs(slope - said[0]) > 1e-6 * max(1, abs(slope)) or abs(growth - said[1]) > 1e-6 * max(1, abs(growth)):
        raise Contradiction(f"{CHECKLIST}: slope and growth are not those of its measurements")
    if odd := [item.name for item in wanted if items.get(item.name, item.passed) != item.passed]:
        raise Contradiction(f"{CHECKLIST}: what it says of {', '.join(odd)} is not what was measured")
    if missing := [item.name for item in wanted if item.name not in items]:
        raise NotYet(f"{CHECKLIST} has no {', '.join(missing)}")
    if found["passed"] != all(items.values()):
        raise Contradiction(f"{CHECKLIST}: what it says of the whole is not what its items say")
    _check_answered(pack, found)
    failed = [name for name, passed in items.items() if not passed]
    told = f"not held: {', '.join(failed)}" if failed else "all held"
    return f"{len(items)} items, {told}; {slope:.3f} ms a token of the prompt"


def _check_answered(pack: PackReader, found: dict) -> None:
    """What the checklist says of answers is what the answers below edge/ of that revision say."""
    said = {item["name"]: item for item in found["items"] if item["name"] in _ANSWERED}
    if not said or not pack.exists(REPORT):
        return
    runs = [name.split("/")[1] for name in pack.entries if re.fullmatch(rf"{RUNS}/[^/]+/eval_results\.csv", name)]
    same = [run for run in runs if _run(pack, run).settings.get("revision") == found.get("revision")]
    if SOURCE not in runs or not same:
        raise NotYet(f"{CHECKLIST} is of {str(found.get('revision'))[:40]}, of which {RUNS}/ has no answers")
    for name, item in said.items():
        told = re.match(r"(\d+) of (\d+) pass, (\d+) of the source; broken (\d+)", str(item.get("measured")))
        counted = [_counted(pack, run, name) for run in same]
        right = [counts for counts in counted if told and counts == tuple(map(int, told.groups()))]
        if (told and not right) or any(item["passed"] != (one[3] <= int(LIMIT * one[1])) for one in right[:1]):
            what = f"{CHECKLIST} says {name}: {str(item.get('measured'))[:60]}"
            raise Contradiction(f"{what}; the answers give {counted[0][0]} of {counted[0][1]}, {counted[0][3]} broken")


def _counted(pack: PackReader, run: str, name: str) -> tuple[int, int, int, int]:
    """How many cases of the item pass, how many there are, how many the source passes, and how many were broken."""
    before, after = _run(pack, SOURCE), _run(pack, run)
    cases = [case for case, row in before.rows.items() if (row["risk"] == "format") == _ANSWERED[name]]
    passed, source = ([case for case in cases if side.passed(case)] for side in (after, before))
    return len(passed), len(cases), len(source), len(set(source) - set(passed))


def check_inference(pack: PackReader) -> str:
    """inference_model.json keeps to its schema."""
    held = pack.json(INFERENCE_MODEL)
    try:
        check_inference_model(held)
    except LabError as error:
        raise NotYet(error.what) from None
    return f"{held['Name']}, with the roles {', '.join(held['PromptTemplate'])}"
