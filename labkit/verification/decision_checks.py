"""Lessons 13.3 and 13.5: which model, which runtime, which route, and why not the others."""

import re

from labkit.landscape.licences import licences_of
from labkit.landscape.models import load_models
from labkit.routes import ROUTE_NAMES
from labkit.verification.reading import PackReader, is_filled, require_keys, sections
from labkit.verification.verdicts import Contradiction, NotYet

MODEL_DECISION = "model_decision.md"
RUNTIME_DECISION = "model_runtime_decision.json"
RUNBOOK = "open_llm_runbook.json"
OPEN_ROUTE = "open_weight_route.json"

_DECISION_KEYS = ("Model", "Revision", "Size", "Licence", "Source", "Reason")
_ROUTE_KEYS = ("model", "runtime", "reason", "proves", "fallback")
_RUNBOOK_KEYS = ("route", "model", "required_evidence", "upgrade_signal", "fallback")
_CHOICE_KEYS = ("choice", "reason")
SIZE_DIGITS = 0.1  # the share by which a size in words may differ from the landscape's
_ALTERNATIVE = re.compile(r"^- ([^:\n]+): *(\S.*)$", re.M)


def check_model_decision(pack: PackReader) -> str:
    """The model is named with its licence, and at least one other was rejected for a stated reason.

    A model that the landscape holds has the size and the licences that stand there.
    """
    fields = pack.fields(MODEL_DECISION, _DECISION_KEYS)
    rejected = _ALTERNATIVE.findall(sections(pack.text(MODEL_DECISION)).get("Rejected alternatives", ""))
    if not rejected:
        raise NotYet(f"{MODEL_DECISION} names no rejected alternative with its reason")
    if unfilled := [name for name, reason in rejected if not (is_filled(name) and is_filled(reason))]:
        raise NotYet(f"{MODEL_DECISION}: no reason against {', '.join(unfilled)}")
    _check_facts(fields)
    return f"{fields['Model']}, {fields['Size']}, {fields['Licence']}; {len(rejected)} rejected"


def _check_facts(fields: dict[str, str]) -> None:
    row = next((row for row in load_models() if row.repo_id == fields["Model"]), None)
    if row is None:
        return
    said, known = billions(fields["Size"]), row.params_total_b
    if said and known and abs(said - known) > SIZE_DIGITS * known:
        where = f"the landscape ({row.source_url or 'its own config'})"
        raise Contradiction(f"{MODEL_DECISION} says {said:.3g} B parameters, {where} {known:.3g} B")
    named = _words(fields["Licence"])
    for licence in licences_of(row.repo_id):
        if not any(_words(name) in named for name in (licence.name, licence.licence_id)):
            what = f"{MODEL_DECISION} says the licence {fields['Licence'][:60]!r}"
            raise Contradiction(f"{what}, {row.repo_id} stands under {licence.name} ({licence.url})")


def _words(text: str) -> str:
    return " ".join(["", *re.findall("[a-z0-9]+", text.lower()), ""])


def billions(text: str) -> float | None:
    """The parameters of a model in billions, from `4,459,264 parameters`, `5 M parameters` or `0.494 B`; else None."""
    if found := re.search(r"(?<![\d.])(\d{1,6}(?:\.\d{1,6})?) ?([BM])\b", text):
        return float(found[1]) / (1 if found[2] == "B" else 1e3)
    found = re.search(r"(\d{1,3}(?:,\d{3}){1,4}|\d{4,13}) parameters", text)
    return float(found[1].replace(",", "")) / 1e9 if found else None


def check_runtime_decision(pack: PackReader) -> str:
    decision = require_keys(pack.json(RUNTIME_DECISION), ("project", "routes"), RUNTIME_DECISION)
    routes = require_keys(decision["routes"], ROUTE_NAMES, f"routes in {RUNTIME_DECISION}")
    for name in ROUTE_NAMES:
        require_keys(routes[name], _ROUTE_KEYS, f"{name} in {RUNTIME_DECISION}")
    return "; ".join(f"{name}: {routes[name]['runtime']}" for name in ROUTE_NAMES)


def check_runbook(pack: PackReader) -> str:
    runbook = require_keys(pack.json(RUNBOOK), _RUNBOOK_KEYS, RUNBOOK)
    choices = [
        require_keys(runbook.get(key), _CHOICE_KEYS, f"{key} in {RUNBOOK}")["choice"]
        for key in ("runtime", "adaptation")
    ]
    return f"runtime {choices[0]}, adaptation {choices[1]}, evidence required: {len(runbook['required_evidence'])}"


def check_open_route(pack: PackReader) -> str:
    plan = require_keys(pack.json(OPEN_ROUTE), ("project", "adaptation", "evidence"), OPEN_ROUTE)
    route = require_keys(plan.get("route"), ("route", "goal"), f"route in {OPEN_ROUTE}")
    family = require_keys(plan.get("model_family"), ("family", "fit", "runtime"), f"model_family in {OPEN_ROUTE}")
    if route["route"] not in ROUTE_NAMES:
        raise NotYet(f"{OPEN_ROUTE} names the route {str(route['route'])[:40]!r}")
    if not isinstance(plan["evidence"], list):
        raise NotYet(f"evidence in {OPEN_ROUTE} is not a list")
    return f"{plan['project']}: {route['route']}, {family['family']}"
