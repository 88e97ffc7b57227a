"""Which runtime a decision takes, and why not the others."""

from labkit.decisions.project import Project
from labkit.landscape.models import EMBEDDED, Model, find_model
from labkit.landscape.quantization import find_quantization
from labkit.landscape.runtimes import Runtime, load_runtimes, support_of
from labkit.landscape.tables import UNKNOWN
from labkit.routes import Route, load_route

EMBEDDED_RUNTIME = "Transformers (labkit serve)"
GGUF_RUNTIME = "llama.cpp"
WHY_RUNTIME = {
    EMBEDDED_RUNTIME: "it runs the checkpoint unchanged on a CPU or a GPU and keeps the API contract",
    "Transformers in the notebook": "a Colab session is for one experiment, so nothing is served from it",
    "vLLM": "it batches many requests on one GPU behind the same API",
    GGUF_RUNTIME: "it reads the GGUF format that was chosen, on a CPU or a small GPU",
}


def runtime_choice(project: Project, model: str, quant: str = "bf16") -> tuple[str, str]:
    """The runtime for `model` on the project's route, and why."""
    choice = runtime_on(load_route(project.available_route), model, quant)
    return choice, WHY_RUNTIME[choice]


def runtime_on(route: Route, model: str, quant: str = "bf16") -> str:
    """What runs `model` on `route`; the embedded model is served by labkit everywhere, a GGUF format by llama.cpp."""
    if model == EMBEDDED:
        return EMBEDDED_RUNTIME
    return GGUF_RUNTIME if find_quantization(quant).scope == "gguf" else route.runtime


def runtime_rows(project: Project, model: str, quant: str = "bf16") -> list[dict[str, str]]:
    """Every runtime of the table for this project: chosen, possible, verify or refused, with the reason."""
    chosen, why = runtime_choice(project, model, quant)
    row = None if model == EMBEDDED or "/" not in model else find_model(model)
    found = []
    for runtime in load_runtimes():
        verdict, reason = _verdict(runtime, project, row)
        if chosen.startswith(runtime.runtime):
            verdict, reason = "chosen", why
        found.append({"runtime": runtime.runtime, "status": runtime.status, "verdict": verdict, "reason": reason})
    return found


def _verdict(runtime: Runtime, project: Project, row: Model | None) -> tuple[str, str]:
    if runtime.status == "maintenance":
        return "refused", runtime.use_for
    if runtime.needs.startswith("an NVIDIA GPU") and project.available_route == "local_cpu":
        return "refused", f"it needs {runtime.needs}, and {project.available_route} has none"
    if runtime.runtime == "cloud API" and project.privacy != "public":
        return "refused", f"the project's data is {project.privacy}, and a cloud API sends it away"
    if row is not None and runtime.runtime != "cloud API" and not _supports(runtime.runtime, row):
        return UNKNOWN, f"no row of runtime_support.csv says that it runs {row.model_type or 'this model'}"
    return "possible", f"for {runtime.use_for}; needs {runtime.needs}"


def _supports(runtime: str, row: Model) -> bool:
    return any(found.runtime.startswith(runtime.split(" / ")[0]) for found in support_of(row.model_type))
