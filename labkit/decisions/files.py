"""Write the four decision files into a pack: the decision, its reasons, and what was rejected."""

from collections.abc import Sequence
from dataclasses import asdict

from labkit.decisions.checkpoint import Checkpoint, describe_checkpoint
from labkit.decisions.open_weight import adaptation, goal, open_weight_route
from labkit.decisions.project import Project, example_project, parse_project
from labkit.decisions.refusals import CANDIDATES, Rejection, refusal, rejections
from labkit.errors import LabError
from labkit.evidence import Pack, read_json
from labkit.landscape.models import EMBEDDED
from labkit.routes import ROUTE_NAMES, Route, load_route

PROJECT_LESSON, ROUTE_LESSON = "13.3", "13.5"
REJECTED_HEADING = "## Rejected alternatives"

EMBEDDED_RUNTIME = "Transformers (labkit serve)"
WHY_RUNTIME = {
    EMBEDDED_RUNTIME: "it runs the checkpoint unchanged on a CPU or a GPU and keeps the API contract",
    "Transformers in the notebook": "a Colab session is for one experiment, so nothing is served from it",
    "vLLM": "it batches many requests on one GPU behind the same API",
}


def write_decisions(
    pack: Pack, project: Project, model: str = EMBEDDED, rejected: Sequence[Rejection] = (), revision: str = ""
) -> None:
    """Write the four decision files into `pack`.

    `model` and `revision` are those of `describe_checkpoint`; `rejected` are alternatives of the learner's own, and
    those already in model_decision.md stay there. Raises LabError when the project names another route than the
    pack, or when `model` itself would be refused on it.
    """
    _require_route(pack, project)
    chosen = describe_checkpoint(model, revision)
    if not chosen.local and (reason := refusal(chosen.name, pack.route, embedded=False)):
        raise LabError(f"{chosen.name} is refused on {pack.route}: {reason}", "choose another model or route")
    pack.write_text("model_decision.md", _model_decision(pack, project, chosen, rejected), PROJECT_LESSON)
    pack.write_json("model_runtime_decision.json", _runtime_decision(project, chosen), PROJECT_LESSON)
    pack.write_json("open_llm_runbook.json", _runbook(project, chosen), PROJECT_LESSON)
    write_open_weight_route(pack, project)


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


def _model_decision(pack: Pack, project: Project, chosen: Checkpoint, own: Sequence[Rejection]) -> str:
    kept = {r.name: r for r in rejected_in(pack) if r.name not in CANDIDATES}
    kept |= {r.name: r for r in (*rejections(chosen.name, pack.route), *own)}
    kept.pop(chosen.name, None)
    lines = ["# Model decision", "", f"- Project: {project.task}", f"- Route: {project.available_route}"]
    lines += [f"- Model: {chosen.name}", f"- Revision: {chosen.revision}", f"- Size: {chosen.size}"]
    lines += [f"- Licence: {chosen.licence}", f"- Source: {chosen.source}", f"- Reason: {_reason(project, chosen)}"]
    lines += ["", REJECTED_HEADING, "", *(f"- {r.name}: {r.reason}" for r in kept.values())]
    return "\n".join(lines) + "\n"


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


def _runtime_decision(project: Project, chosen: Checkpoint) -> dict:
    cards = {name: _route_card(name, project, chosen) for name in ROUTE_NAMES}
    return {"project": asdict(project), "routes": cards}


def _route_card(name: str, project: Project, chosen: Checkpoint) -> dict:
    route, taken = load_route(name), name == project.available_route
    model = chosen.name if taken else route.next_model
    runtime = runtime_on(route, model)
    if taken:
        reason = f"the project's route: {goal(project)}"
    elif name == "free_colab" and project.privacy != "public":
        reason = f"only with invented or public text, because the project's data is {project.privacy}"
    else:
        reason = f"not the project's route; it would be taken to: {route.goal.rstrip('.')}"
    proves = "; ".join(route.proves)
    return {"model": model, "runtime": runtime, "reason": reason, "proves": proves, "fallback": route.fallback}


def runtime_choice(project: Project, model: str) -> tuple[str, str]:
    """The runtime for `model` on the project's route, and why."""
    choice = runtime_on(load_route(project.available_route), model)
    return choice, WHY_RUNTIME[choice]


def runtime_on(route: Route, model: str) -> str:
    """What runs `model` on `route`; the embedded model is served by labkit everywhere."""
    return EMBEDDED_RUNTIME if model == EMBEDDED else route.runtime


def _runbook(project: Project, chosen: Checkpoint) -> dict:
    route = load_route(project.available_route)
    runtime, why_runtime = runtime_choice(project, chosen.name)
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
