"""What a project's route can honestly aim at: the rules behind open_weight_route.json."""

from dataclasses import replace

from labkit.decisions.project import Project
from labkit.errors import LabError
from labkit.routes import ROUTE_NAMES

EVIDENCE = (
    "model card and license note",
    "runtime command",
    "first prompt and output",
    "five-case eval table",
    "latency and memory note",
    "shutdown command",
)


def open_weight_route(project: Project) -> dict:
    """What open_weight_route.json holds: the route and its goal, a model family, an adaptation, the evidence to leave.

    The goal follows the route first: a free Colab session ends without notice, so it stays one experiment even where
    a service API is wanted. The family follows route and budget, the adaptation `needs_fine_tuning`; privacy adds to
    the evidence.
    """
    return {
        "project": project.task,
        "route": {"route": project.available_route, "goal": goal(project)},
        "model_family": _family(project),
        "adaptation": adaptation(project),
        "evidence": _evidence(project),
    }


def goal(project: Project) -> str:
    if project.available_route == "free_colab":
        return "run one notebook experiment and save reset notes"
    if project.available_route == "local_cpu":
        if project.needs_service_api:
            return "keep the API contract for one local client with a small quantized model"
        return "prove the pipeline with a small quantized model"
    if project.needs_service_api:
        return "run a stable API with explicit cost and shutdown"
    return "run one bounded GPU job with explicit cost and shutdown"


def _family(project: Project) -> dict:
    if project.available_route == "local_cpu":
        fit, runtime = ["local_cpu", "colab"], "Transformers, llama.cpp, or Ollama"
        return {"family": "small Qwen or SmolLM family", "fit": fit, "runtime": runtime}
    if project.available_route == "rented_gpu" and project.budget_level == "medium":
        return {"family": "Qwen or gpt-oss family (mixtures)", "fit": ["rented_gpu"], "runtime": "vLLM or SGLang"}
    runtime = "Transformers" if project.available_route == "free_colab" else "Transformers, vLLM, or SGLang"
    return {"family": "Qwen or Llama family", "fit": ["colab", "rented_gpu"], "runtime": runtime}


def adaptation(project: Project) -> str:
    if not project.needs_fine_tuning:
        return "RAG first; LoRA only after fixed eval failures"
    if project.available_route == "local_cpu":
        return "RAG first; LoRA on the small model as a smoke test, after fixed eval failures"
    return "RAG first; then LoRA on the cases that still fail, with a before-and-after table"


def _evidence(project: Project) -> list[str]:
    evidence = list(EVIDENCE)
    if project.available_route == "free_colab":
        evidence.append("reset notes")
        if project.privacy == "private_docs":
            evidence.append("note that only invented or public text was uploaded")
    if project.privacy == "regulated":
        evidence.append("note of where the data lay and who could read it")
    if project.needs_fine_tuning:
        evidence.append("before-and-after table on the same cases")
    return evidence


def compare_routes(project: Project) -> list[dict[str, str]]:
    """The same project decided for each of the three routes, side by side; a refused route says why."""
    return [_on_route(project, name) for name in ROUTE_NAMES]


def _on_route(project: Project, name: str) -> dict[str, str]:
    try:
        plan = open_weight_route(replace(project, available_route=name))
    except LabError as refused:
        return {
            "route": name,
            "goal": f"refused: {refused.what}",
            "family": "",
            "runtime": "",
            "adds to the evidence": "",
        }
    return {
        "route": name,
        "goal": plan["route"]["goal"],
        "family": plan["model_family"]["family"],
        "runtime": plan["model_family"]["runtime"],
        "adds to the evidence": "; ".join(plan["evidence"][len(EVIDENCE) :]) or "nothing",
    }
