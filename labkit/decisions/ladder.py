"""The decision ladder: five questions in the order in which a wrong answer is cheapest to find."""

from labkit.decisions.checkpoint import Checkpoint, describe_checkpoint
from labkit.decisions.open_weight import goal, open_weight_route
from labkit.decisions.project import Project
from labkit.decisions.runtimes import runtime_choice
from labkit.landscape.licences import licences_of
from labkit.landscape.memory import memory_estimate, size_text
from labkit.landscape.models import EMBEDDED
from labkit.routes import load_route


def ladder_rows(
    project: Project, model: str | Checkpoint = EMBEDDED, context: int = 1024, quant: str = "bf16"
) -> list[dict[str, str]]:
    """The five rungs for `project` and `model`: step, question, answer. Raises LabError as `describe_checkpoint` does.

    A licence is read before hardware is bought, and hardware is known before a runtime is installed; evidence comes
    last because it judges the other four.
    """
    chosen = model if isinstance(model, Checkpoint) else describe_checkpoint(model)
    terms = "; ".join(licence.obligations for licence in licences_of(chosen.name)) or "read it in the model's folder"
    route = load_route(project.available_route)
    runtime, why = runtime_choice(project, chosen.name, quant)
    answers = (
        ("task", "What must it do, and with whose data?", f"{project.task}; data: {project.privacy}; {goal(project)}"),
        ("licence", "May we use it so?", f"{chosen.licence}: {terms}"),
        (
            "hardware",
            "Does it fit?",
            f"{_need(chosen.name, context, quant)}; {route.title} is taken to hold {route.memory_gib} GiB",
        ),
        ("runtime", "What runs it?", f"{runtime}: {why}"),
        ("evidence", "What will prove it?", "; ".join(open_weight_route(project)["evidence"])),
    )
    return [{"step": step, "question": question, "answer": answer} for step, question, answer in answers]


def _need(name: str, context: int, quant: str) -> str:
    if name != EMBEDDED and "/" not in name:
        return "memory: to verify for a model of your own"
    estimate = memory_estimate(name, quant, context)
    return f"{size_text(estimate.total)} in {estimate.quant} at {context:,} tokens"
