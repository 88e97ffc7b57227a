"""Four ways to decide wrongly, each tried here and refused, with the name that the refusal gives it."""

from dataclasses import replace

from labkit.decisions.project import Project
from labkit.decisions.refusals import Terms, refusal
from labkit.errors import LabError

# The name, what somebody would like to do, and the model, the route and the format they would do it with.
TRIED = (
    ("licence unread", "take a model whose licence nobody read", "Qwen/Qwen2.5-VL-7B-Instruct", "rented_gpu", "bf16"),
    ("no quantization", "run in 16 bit what fits in 4", "Qwen/Qwen2.5-7B-Instruct", "local_cpu", "bf16"),
    ("size alone", "take the largest that fits", "Qwen/Qwen2.5-32B-Instruct", "rented_gpu", "AWQ"),
)
PUBLIC = ("public without auth", "open a service to everybody without a key")


def anti_pattern_rows(project: Project) -> list[dict[str, str]]:
    """One row for each anti-pattern: its name, what was tried, and what the refusal says."""
    rows = [
        {"name": name, "tried": tried, "refused because": refusal(model, route, False, Terms(route, quant=quant))}
        for name, tried, model, route, quant in TRIED
    ]
    return [*rows, dict(zip(("name", "tried"), PUBLIC, strict=True)) | {"refused because": _public(project)}]


def _public(project: Project) -> str:
    try:
        replace(project, exposure="public", auth="none")
    except LabError as refused:
        return refused.what
    return ""
