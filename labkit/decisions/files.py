"""Write the four decision files into a pack: the decision, its reasons, and what was rejected."""

from collections.abc import Sequence
from dataclasses import asdict

from labkit.decisions.checkpoint import Checkpoint, describe_checkpoint
from labkit.decisions.ladder import ladder_rows
from labkit.decisions.open_weight import adaptation, goal, open_weight_route
from labkit.decisions.project import Project, example_project, parse_project
from labkit.decisions.refusals import CANDIDATES, Rejection, Terms, refusal, rejections
from labkit.decisions.runtimes import runtime_choice, runtime_on, runtime_rows
from labkit.errors import LabError
from labkit.evidence import Pack, read_csv, read_json
from labkit.landscape.models import EMBEDDED
from labkit.landscape.quantization import find_quantization
from labkit.routes import ROUTE_NAMES, load_route

PROJECT_LESSON, ROUTE_LESSON = "13.3", "13.5"
REJECTED_HEADING = "## Rejected alternatives"


def write_decisions(
    pack: Pack,
    project: Project,
    model: str = EMBEDDED,
    rejected: Sequence[Rejection] = (),
    revision: str = "",
    quant: str = "",
    failed_cases: Sequence[str] = (),
) -> None:
    """Write the four decision files into `pack`.

    `model` and `revision` are those of `describe_checkpoint`, `quant` is the format of its weights; `rejected` are
    alternatives of the learner's own, and those already in model_decision.md stay there. `failed_cases` are ids in the
    pack's eval_results.csv that a smaller model failed: they are what speaks for a larger one. Raises LabError when
    the project names another route than the pack, or when `model` itself would be refused on it.
    """
    _require_route(pack, project)
    _require_failed(pack, failed_cases)
    chosen, form = describe_checkpoint(model, revision), find_quantization(quant or "bf16").format
    terms = Terms(pack.route, project.use, project.budget_level, form, tuple(failed_cases))
    if not chosen.local and (reason := refusal(chosen.name, pack.route, embedded=False, terms=terms)):
        raise LabError(f"{chosen.name} is refused on {pack.route}: {reason}", _remedy(reason))
    text = _model_decision(pack, project, chosen, rejected, form if quant else "", failed_cases)
    pack.write_text("model_decision.md", text, PROJECT_LESSON)
    pack.write_json("model_runtime_decision.json", _runtime_decision(pack, project, chosen, form), PROJECT_LESSON)
    pack.write_json("open_llm_runbook.json", _runbook(project, chosen, form), PROJECT_LESSON)
    write_open_weight_route(pack, project)


def _remedy(reason: str) -> str:
    if reason.endswith("(no quantization)"):
        return "decide on the quantized format with --quant, or choose another model or route"
    if reason.endswith("(size alone)"):
        return "run the cases on a smaller model first and name those that it failed with --failed-cases"
    return "choose another model or route"


def _require_failed(pack: Pack, failed_cases: Sequence[str]) -> None:
    """Raises LabError unless the pack's eval_results.csv holds each of the cases as failed."""
    if not failed_cases:
        return
    path = pack.path("eval_results.csv")
    if not path.exists():
        raise LabError("no eval_results.csv shows that a smaller model failed", "run `labkit eval` on it first")
    failed = {row.get("case_id") for row in read_csv(path) if row.get("pass") == "false"}
    if missing := sorted(set(failed_cases) - failed):
        raise LabError(f"{path.name} does not show {', '.join(missing)} as failed", "name cases that did fail")


def write_open_weight_route(pack: Pack, project: Project) -> None:
    """Write open_weight_route.json alone. Raises LabError when the project names another route than the pack."""
    _require_route(pack, project)
    pack.write_json("open_weight_route.json", open_weight_route(project), ROUTE_LESSON)


def _require_route(pack: Pack, project: Project) -> None:
    if project.available_route != pack.route:
        raise LabError(
            f"the project is for {project.available_route} and the pack for {pack.route}",
            f"set available_route to {pack.route}, or open a pack of the route {project.available_route}",
        )


def project_of(pack: Pack) -> Project:
    """The project that the pack was decided for; the chapter's example on the pack's route where none was yet.

    Raises LabError when model_runtime_decision.json holds no usable project.
    """
    path = pack.path("model_runtime_decision.json")
    return parse_project(read_json(path).get("project"), path.name) if path.exists() else example_project(pack.route)


def record_rejection(pack: Pack, project: Project, rejection: Rejection) -> None:
    """Add one rejected alternative to the pack's model_decision.md, in place of an older line with the same name.

    Where 13.3 has not run yet, all four files are written with the embedded model first.
    """
    path = pack.path("model_decision.md")
    if not path.exists():
        write_decisions(pack, project, rejected=[rejection])
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if not line.startswith(f"- {rejection.name}: ")]
    if REJECTED_HEADING not in lines:
        lines += ["", REJECTED_HEADING, ""]
    pack.write_text("model_decision.md", "\n".join([*lines, f"- {rejection.name}: {rejection.reason}"]) + "\n", "13.3")


def _model_decision(
    pack: Pack, project: Project, chosen: Checkpoint, own: Sequence[Rejection], quant: str, failed: Sequence[str]
) -> str:
    lines = ["# Model decision", "", f"- Project: {project.task}", f"- Route: {project.available_route}"]
    lines += [f"- Model: {chosen.name}", f"- Revision: {chosen.revision}", f"- Size: {chosen.size}"]
    lines += [f"- Made from: {chosen.made_from}"] if chosen.made_from else []
    lines += [f"- Format: {quant}"] if quant else []
    lines += [f"- Licence: {chosen.licence}", f"- Source: {chosen.source}", f"- Reason: {_reason(project, chosen)}"]
    lines += [f"- Cases that a smaller model failed: {', '.join(failed)}"] if failed else []
    lines += ["", REJECTED_HEADING, ""]
    lines += [f"- {r.name}: {r.reason}" for r in _all_rejected(pack, chosen, own)]
    return "\n".join(lines) + "\n"


def _all_rejected(pack: Pack, chosen: Checkpoint, own: Sequence[Rejection]) -> tuple[Rejection, ...]:
    """Those that stand in the pack already, the standing alternatives, and the learner's own; one for each name."""
    kept = {r.name: r for r in rejected_in(pack) if r.name not in CANDIDATES}
    kept |= {r.name: r for r in (*rejections(chosen.name, pack.route), *own)}
    kept.pop(chosen.name, None)
    return tuple(kept.values())


def rejected_in(pack: Pack) -> tuple[Rejection, ...]:
    """The rejected alternatives that stand in the pack's model_decision.md; none where there is no such file."""
    path = pack.path("model_decision.md")
    if not path.exists():
        return ()
    _, _, below = path.read_text(encoding="utf-8", errors="replace").partition(REJECTED_HEADING)
    pairs = (line[2:].split(": ", 1) for line in below.splitlines() if line.startswith("- ") and ": " in line)
    return tuple(Rejection(name.strip(), reason.strip()) for name, reason in pairs)


def _reason(project: Project, chosen: Checkpoint) -> str:
    if chosen.name == EMBEDDED:
        return (
            "it proves every step of the loop with no network, no account and no GPU, its licence permits commercial "
            f"use, and it is small enough to measure on {project.available_route}; it says nothing about a larger model"
        )
    return f"its licence was read, it is estimated to fit {project.available_route}, and the fixed cases will judge it"


def _runtime_decision(pack: Pack, project: Project, chosen: Checkpoint, quant: str) -> dict:
    route = load_route(project.available_route)
    return {
        "project": asdict(project),
        "routes": {name: _route_card(name, project, chosen, quant) for name in ROUTE_NAMES},
        "ladder": ladder_rows(project, chosen, quant=quant),
        "runtimes": runtime_rows(project, chosen.name, quant),
        "rejected": [asdict(rejection) for rejection in rejected_in(pack)],
        "upgrade_signal": route.upgrade_signal,
        "fallback": route.fallback,
    }


def _route_card(name: str, project: Project, chosen: Checkpoint, quant: str) -> dict:
    route, taken = load_route(name), name == project.available_route
    model = chosen.name if taken else route.next_model
    runtime = runtime_on(route, model, quant if taken else "bf16")
    if taken:
        reason = f"the project's route: {goal(project)}"
    elif name == "free_colab" and project.privacy != "public":
        reason = f"only with invented or public text, because the project's data is {project.privacy}"
    else:
        reason = f"not the project's route, which would be taken to {route.goal[0].lower()}{route.goal[1:].rstrip('.')}"
    proves = "; ".join(route.proves)
    return {"model": model, "runtime": runtime, "reason": reason, "proves": proves, "fallback": route.fallback}


def _runbook(project: Project, chosen: Checkpoint, quant: str) -> dict:
    route = load_route(project.available_route)
    runtime, why_runtime = runtime_choice(project, chosen.name, quant)
    why_adaptation = "the cheapest lever first, each judged on the same fixed cases"
    return {
        "route": route.route,
        "model": chosen.name,
        "runtime": {"choice": runtime, "reason": why_runtime},
        "adaptation": {"choice": adaptation(project), "reason": why_adaptation},
        "required_evidence": list(route.required_artifacts),
        "upgrade_signal": route.upgrade_signal,
        "fallback": route.fallback,
    }
