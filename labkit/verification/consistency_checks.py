"""Facts that stand in several files must be the same fact: each check names both sides. The table: crosschecks.py."""

import re
from collections.abc import Callable
from functools import cache

from labkit.benchmark.measure import P95_LIMIT_MS
from labkit.commit import CHANGES, UNKNOWN
from labkit.evaluation.cases import load_cases, needed_of
from labkit.evidence import MANIFEST
from labkit.routes import ROUTE_NAMES
from labkit.verification import decision_checks as decision
from labkit.verification import plan_checks as plan
from labkit.verification import release_checks as release
from labkit.verification import service_checks as service
from labkit.verification import timing_checks as timing
from labkit.verification import training_checks as training
from labkit.verification.reading import PackReader
from labkit.verification.verdicts import Contradiction, NotYet

_OF_A_CASE = ("prompt", "risk", "context_id", "check", "expected")
_COMMIT = re.compile(rf"(?:[0-9a-f]{{40}}|[0-9a-f]{{64}})(?:{re.escape(CHANGES)})?")


def agree(said: dict[str, str], what: str) -> str:
    """The one value that all of `said` (place to value) name. Else raises Contradiction, the rarest named first."""
    places: dict[str, list[str]] = {}
    for place, value in said.items():
        places.setdefault(value, []).append(place)
    if len(places) > 1:
        rarest = sorted(places.items(), key=lambda found: len(found[1]))
        raise Contradiction(f"{what}: " + ", ".join(_saying(found, value) for value, found in rarest))
    return next(iter(places))


def _saying(places: list[str], value: str) -> str:
    others = f" and {len(places) - 1} more say" if len(places) > 1 else " says"
    return f"{places[0]}{others} {value}"


def present(pack: PackReader, readers: dict[str, Callable[[], str]]) -> tuple[dict[str, str], list[str]]:
    """What each file that is there says, and the files that are not. An unreadable file is its own rule's business."""
    missing = [name for name in readers if not pack.exists(name)]
    return {name: read() for name, read in readers.items() if name not in missing}, missing


def check_training_device(pack: PackReader) -> str:
    """The device in the log rows, the training environment, the terminal's trace and the README's verdict."""
    said, missing = present(
        pack,
        {
            training.RUN_LOG: lambda: training.log_devices(pack),
            training.RUN_ENVIRONMENT: lambda: str(pack.json(training.RUN_ENVIRONMENT).get("device")),
            training.TRACE: lambda: training.trace_device(pack),
        },
    )
    if said:
        device = agree({_short(place): value for place, value in said.items()}, "training device")
        _check_verdict(pack, device)
        _check_machine(pack, device)
    if missing or not pack.exists(training.RUN_README):
        raise NotYet(f"missing: {', '.join(missing or [training.RUN_README])}")
    return f"{device} in the log rows, the environment and the trace; the README says {training.readme_verdict(pack)}"


def _short(name: str) -> str:
    return name.removeprefix(training.RUN)


def _check_verdict(pack: PackReader, device: str) -> None:
    """Only a run on cuda is an acceptance; a run on a CPU or on MPS is a smoke test whatever its README says."""
    right = training.CUDA_ACCEPTANCE if device == "cuda" else training.SMOKE_TEST
    if pack.exists(training.RUN_README) and (said := training.readme_verdict(pack)) != right:
        raise Contradiction(f"the run's README.md says {said}, training_log.csv says {device}")


def _check_machine(pack: PackReader, device: str) -> None:
    """13.1 and 13.2 may have run on two machines, or on one that was given another GPU: that is no lie, and no
    acceptance."""
    if device != "cuda" or not pack.exists(plan.ENVIRONMENT):
        return
    if pack.fields(plan.ENVIRONMENT, ("CUDA",))["CUDA"] != "available":
        what = f"training_log.csv says cuda, {plan.ENVIRONMENT} says CUDA is not available"
        raise NotYet(f"{what}: run 13.1 and 13.2 on one machine")


def check_losses(pack: PackReader) -> str:
    """Every loss that the terminal showed stands in training_log.csv, to the four decimals that both print."""
    rows = {int(float(row["step"])): row for row in training.log_rows(pack)}
    shown = training.trace_losses(pack)
    if not shown:
        raise NotYet(f"{training.TRACE} has no loss lines")
    if unseen := sorted(set(rows) - set(shown)):
        raise Contradiction(f"training_log.csv has step {unseen[0]}, {training.TRACE} has not")
    for step, losses in shown.items():
        if step not in rows:
            raise Contradiction(f"{training.TRACE} has step {step}, training_log.csv has not")
        logged = tuple(float(rows[step][column]) for column in ("train_loss", "val_loss"))
        if any(abs(a - b) > 1e-4 for a, b in zip(losses, logged, strict=True)):
            raise Contradiction(f"step {step}: {training.TRACE} says {losses}, training_log.csv says {logged}")
    return f"{len(shown)} loss lines agree with training_log.csv"


def check_route(pack: PackReader) -> str:
    """One pack, one route: a claim is only as strong as the route it was made on."""
    if pack.manifest is None:
        raise NotYet(f"{MANIFEST} is missing or unreadable")
    readers = {
        plan.ROUTE_PLAN: lambda: pack.fields(plan.ROUTE_PLAN, ("Route",))["Route"],
        service.FIRST_RUN: lambda: pack.fields(service.FIRST_RUN, ("Route",))["Route"],
        service.SUMMARY: lambda: str(pack.json(service.SUMMARY).get("route")),
        decision.RUNBOOK: lambda: str(pack.json(decision.RUNBOOK).get("route")),
        decision.OPEN_ROUTE: lambda: str(pack.json(decision.OPEN_ROUTE)["route"]["route"]),
    }
    if pack.exists(release.BENCHMARK):
        readers[release.BENCHMARK] = lambda: str(pack.json(release.BENCHMARK).get("route"))
    said, missing = present(pack, readers)
    route = agree({MANIFEST: pack.manifest["route"], **said}, "route")
    if route not in ROUTE_NAMES:
        raise NotYet(f"{MANIFEST} names the route {route[:40]!r}, which is none of {', '.join(ROUTE_NAMES)}")
    if missing:
        raise NotYet(f"{route} so far; missing: {', '.join(missing)}")
    return f"{route} in {len(said) + 1} files"


def check_model(pack: PackReader) -> str:
    """Model and revision: what was decided is what ran first, was served, was evaluated and is promised.

    Steps that ran with different models make a pack that is not finished: whoever tries another model has told no lie.
    """
    said, missing = present(
        pack,
        {
            decision.MODEL_DECISION: lambda: _named(pack.fields(decision.MODEL_DECISION, ("Model", "Revision"))),
            service.FIRST_RUN: lambda: _named(pack.fields(service.FIRST_RUN, ("Model", "Revision"))),
            service.SMOKE: lambda: _named(pack.json(service.SMOKE)),
            service.SUMMARY: lambda: _named(pack.json(service.SUMMARY)),
            service.RESULTS: lambda: _named(service.result_rows(pack)[0]),
            release.CONTRACT: lambda: _named(pack.json(release.CONTRACT)),
        },
    )
    said |= _served(pack)
    if not said:
        raise NotYet("no file names the model yet")
    try:
        model = agree(said, "model and revision")
    except Contradiction as apart:
        raise NotYet(f"{apart}: they were made of different models") from None
    if missing:
        raise NotYet(f"{model} so far; missing: {', '.join(missing)}")
    return f"{model} in {len(said)} files"


def _served(pack: PackReader) -> dict[str, str]:
    """What the server that was asked said of itself, and the model that was measured, where a pack holds it."""
    smoke = pack.json(service.SMOKE) if pack.exists(service.SMOKE) else {}
    health, said = smoke.get("health"), {}
    if isinstance(health, dict) and {"model", "revision"} <= health.keys():
        said[f"health in {service.SMOKE}"] = _named(health)
        if health["revision"] != smoke.get("revision"):  # the smoke test takes it from there
            raise Contradiction(f"health in {service.SMOKE} says {_named(health)}, its answer {_named(smoke)}")
    contract = pack.json(release.CONTRACT) if pack.exists(release.CONTRACT) else {}
    for name in (release.BENCHMARK, release.CONFORMANCE):
        if pack.exists(name) and (asked := pack.json(name)).get("base_url") == _base_url(contract):
            said[name] = _named({"revision": contract.get("revision")} | asked)
    proof = pack.json(release.SHUTDOWN) if pack.exists(release.SHUTDOWN) else {}
    if proof.get("model") and str(_base_url(contract)).endswith(f":{proof.get('port')}"):
        said[release.SHUTDOWN] = _named({"revision": contract.get("revision"), "model": proof["model"]})
    return said


def _base_url(contract: dict) -> object:
    endpoint = contract.get("endpoint")
    return endpoint.get("base_url") if isinstance(endpoint, dict) else None


def _named(values: dict) -> str:
    lower = {str(key).lower(): value for key, value in values.items()}
    return f"{lower.get('model')} at {lower.get('revision')}"


def check_versions(pack: PackReader) -> str:
    """The frozen versions are those of the environment that ran, on the machine's report and on the run's."""
    frozen = plan.freeze_versions(pack)
    fields = pack.fields(plan.ENVIRONMENT, ())
    reports = {plan.ENVIRONMENT: {k.removeprefix("Package "): v for k, v in fields.items() if k.startswith("Package ")}}
    if pack.exists(training.RUN_ENVIRONMENT):
        reports["the run's environment_report.json"] = pack.json(training.RUN_ENVIRONMENT).get("packages") or {}
    for place, versions in reports.items():
        for name, version in versions.items():
            if (held := frozen.get(plan.normalised(name), "nothing")) != version:
                what = f"{plan.FREEZE} says {name} {held}, {place} says {version}"
                if place != plan.ENVIRONMENT:
                    raise NotYet(f"{what}: a package was changed between 13.1 and the run")
                timing.made_again(pack, plan.ENVIRONMENT, plan.FREEZE)
                raise Contradiction(what)
    if not reports[plan.ENVIRONMENT]:
        raise NotYet(f"{plan.ENVIRONMENT} names no package versions")
    return f"{len(reports[plan.ENVIRONMENT])} package versions agree"


def check_case_results(pack: PackReader) -> str:
    """Each case has one result, under the risk and the check that the case names.

    Cases of a learner's own may be edited or taken out after the evaluation, which is then old.
    """
    cases = {row["case_id"]: row for row in service.case_rows(pack)}
    results = {row["case_id"]: row for row in service.result_rows(pack)}  # repeats of a case have one risk and check
    for case_id in results:
        for column in ("risk", "check"):
            case = cases.get(case_id, {}).get(column, "no such case")
            if case != results[case_id][column]:
                what = f"{case_id}: {service.RESULTS} says {results[case_id][column]}, {service.CASES} says {case}"
                if pack.check_recorded(service.CASES):
                    raise NotYet(f"{what}; {service.CASES} was edited since")
                timing.made_again(pack, service.CASES, service.RESULTS)
                raise Contradiction(what)
    if untried := [case_id for case_id in cases if case_id not in results]:
        raise NotYet(f"no result yet for {', '.join(untried[:5])}")
    return f"{len(results)} results, each under its case's risk and check"


@cache
def _given() -> dict[str, dict[str, str]]:
    """The workbook's own cases by id, without the columns that the learner fills in."""
    return {case.case_id: {name: case.as_row()[name] for name in _OF_A_CASE} for case in load_cases()}


def check_given_cases(pack: PackReader) -> str:
    """A case with the id of one of the workbook's is that case, and was not made easier; own cases have own ids.

    "Not yet", because an older workbook may have given it otherwise; supported it is only by the cases of this one.
    """
    rows = [row for row in service.case_rows(pack) if row["case_id"] in _given()]
    for row in rows:
        case = _given()[row["case_id"]]
        if changed := [name for name in _OF_A_CASE if row.get(name, "").strip() != case[name].strip()]:
            raise NotYet(f"{row['case_id']} is not the workbook's case of that id: {', '.join(changed)} differs")
    if rows and (left := sorted(_given().keys() - {row["case_id"] for row in rows})):
        raise NotYet(f"{len(left)} of the workbook's {len(_given())} cases were left out: {', '.join(left[:5])}")
    own = len(service.case_rows(pack)) - len(rows)
    return f"{len(rows)} of the workbook's {len(_given())} cases as they were given, {own} of the learner's own"


def check_gate_numbers(pack: PackReader) -> str:
    """The gates repeat the evaluation's counts, none passes below its threshold, and none claims a speed that the route
    cannot prove."""
    by_risk = pack.json(service.SUMMARY)["by_risk"]
    rows = release.gate_rows(pack)
    risk_rows = {row["gate"]: row for row in rows if row["gate"] in service.RISKS}
    if missing := [risk for risk in service.RISKS if risk not in risk_rows]:
        raise NotYet(f"{release.GATES} has no gate for {', '.join(missing)}")
    for risk, row in risk_rows.items():
        counts = by_risk[risk]
        if (said := re.search(r"(?<!\d)(\d{1,9}) of (\d{1,9})", row["measured"])) is None:
            raise NotYet(f"{release.GATES}: the gate {risk} measures {row['measured'][:40]!r}, not `n of m`")
        if (int(said[1]), int(said[2])) != (counts["passed"], counts["total"]):
            timing.made_again(pack, service.SUMMARY, release.GATES)
            raise Contradiction(
                f"{release.GATES} says {risk} {said[0]}, {service.SUMMARY} says {counts['passed']} of {counts['total']}"
            )
        if row["status"] == "pass" and counts["passed"] < (needed := needed_of(risk, counts["total"])):
            raise Contradiction(f"{release.GATES} passes {risk} with {said[0]}, and a release needs {needed}")
    _check_speed_gates(pack, [row for row in rows if "p95" in row["gate"] and row["status"] == "pass"])
    return "the gates' counts are the evaluation's, and none passes below its threshold"


def _check_speed_gates(pack: PackReader, passed: list[dict[str, str]]) -> None:
    for row in passed:
        if pack.route != "rented_gpu":
            raise Contradiction(f"{release.GATES} claims {row['gate']}, which the route {pack.route} cannot prove")
        worst = max(float(level["p95_ms"]) for level in pack.json(release.BENCHMARK)["levels"])
        if worst > P95_LIMIT_MS or f"{worst:.0f} ms" not in row["measured"]:
            timing.made_again(pack, release.BENCHMARK, release.GATES)
            said = f"{release.GATES} passes {row['gate']} with {row['measured'][:60]}"
            raise Contradiction(f"{said}; {release.BENCHMARK} says {worst:.0f} ms, and {P95_LIMIT_MS:.0f} are allowed")


def check_commit(pack: PackReader) -> str:
    """The manifest names the workbook's commit as labkit does: git's hash, with a mark where files were changed; or
    that it is not known, outside of a checkout and of a bundle."""
    if pack.manifest is None:
        raise NotYet(f"{MANIFEST} is missing or unreadable")
    said = str(pack.manifest.get("git_commit"))
    if said == UNKNOWN:
        return "not known: made outside of a checkout and of a bundle"
    if not _COMMIT.fullmatch(said):
        raise Contradiction(f"{MANIFEST} names the commit {said[:60]!r}, which is none of git's")
    changed = ", with changed files" if said.endswith(CHANGES) else ""
    return f"{said.removesuffix(CHANGES)[:12]}{changed}"


def check_hashes(pack: PackReader) -> str:
    """Every file that the manifest lists is there and unchanged, those of no rule (executed notebooks) too."""
    if pack.manifest is None:
        raise NotYet(f"{MANIFEST} is missing or unreadable")
    gone, changed, edited, own = [], [], [], []
    for name in pack.entries:
        service.moment(pack.written(name), f"the time of {name} in {MANIFEST}")
        try:
            note = pack.check_recorded(name)
        except NotYet:
            (own if pack.path(name).is_file() else gone).append(name)
        except Contradiction:
            changed.append(name)
        else:
            edited += [name] if note else []
    if changed:
        raise Contradiction(f"changed after it was recorded: {', '.join(changed)}")
    if gone:
        raise NotYet(f"recorded and gone: {', '.join(gone)}")
    if own:
        raise NotYet(f"a person's own changes, or too large to be read: {', '.join(own)}")
    if not pack.entries:
        raise NotYet(f"{MANIFEST} lists no file yet")
    allowed = f"; edited by hand, as it may be: {', '.join(edited)}" if edited else ""
    return f"{len(pack.entries)} files have their recorded sha256{allowed}"
