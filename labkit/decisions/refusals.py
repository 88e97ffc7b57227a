"""Why a model is not taken: its licence, its memory, or a size that the task does not need.

The anti-patterns have names, and a refusal says them: licence unread, no quantization, size alone. The fourth, public
without auth, is refused with the project (project.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from labkit.errors import LabError
from labkit.landscape.licences import commercial_use, licence_names, licences_of
from labkit.landscape.memory import memory_estimate
from labkit.landscape.models import EMBEDDED, Model, find_model
from labkit.routes import load_route

# Billions of parameters to start with, by route and budget: our judgement, not a law. A larger model is for those who
# can name the cases that one of this size failed.
START_B = {"local_cpu": 4.5, "free_colab": 9, "rented_gpu": 15}
START_B_MEDIUM = 80
SMALLEST = "Q4_K_M"  # the format in which a model is tried before it is given up for its memory

# Alternatives that every decision weighs: one that fails on its licence, one on memory, two on size.
CANDIDATES = (
    "Qwen/Qwen2.5-3B-Instruct",
    "meta-llama/Meta-Llama-3.1-70B-Instruct",
    "Qwen/Qwen2.5-0.5B-Instruct",
    "Qwen/Qwen2.5-7B-Instruct",
)


@dataclass(frozen=True)
class Rejection:
    """An alternative that was weighed and refused. The reason is licence, memory, or size beyond the task."""

    name: str
    reason: str

    def __post_init__(self):
        if any(not text.strip() or "\n" in text for text in (self.name, self.reason)) or ":" in self.name:
            raise LabError(
                f"the rejected alternative {self.name!r} cannot be written down",
                "give a name without a colon and a reason, each on one line",
            )


@dataclass(frozen=True)
class Terms:
    """What a checkpoint is weighed against. `failed_cases` are ids of cases that a smaller model failed."""

    route: str
    use: str = "production"
    budget_level: str = "small"
    quant: str = "bf16"
    failed_cases: tuple[str, ...] = ()

    @property
    def start_b(self) -> float:
        large = self.route == "rented_gpu" and self.budget_level == "medium"
        return START_B_MEDIUM if large else START_B[self.route]


def refusal(repo_id: str, route: str, embedded: bool = True, terms: Terms | None = None) -> str:
    """Why the checkpoint is not taken on `route`, or "" when nothing speaks against it.

    Down the ladder: a licence that nobody verified or that forbids the use, then memory at 4,096 tokens, then a size
    that the task does not need (where the `embedded` model is the choice, any other is larger). Raises LabError for an
    unknown checkpoint.
    """
    row, terms = find_model(repo_id), terms or Terms(route)
    rungs = (_against_licence(row, terms), _against_memory(row, terms), _against_size(row, terms, embedded))
    return next((reason for reason in rungs if reason), "")


def _against_licence(row: Model, terms: Terms) -> str:
    if not licences_of(row.repo_id):
        return "licence: it was not verified, and an unread licence is no permission (licence unread)"
    if commercial_use(row.repo_id) == "no" and terms.use == "production":
        return f"licence: the {licence_names(row.repo_id)} does not allow production use"
    return ""


def _against_memory(row: Model, terms: Terms) -> str:
    estimate, held = memory_estimate(row, terms.quant), load_route(terms.route).memory_gib
    need = estimate.total_gib
    if need is None:
        return "memory: what it needs could not be computed from verified dimensions"
    if need <= held:
        return ""
    small = memory_estimate(row, SMALLEST).total_gib
    named = f"; in {SMALLEST} it is {small:.1f} GiB and fits (no quantization)" if small and small <= held else ""
    size = f"about {need:.1f} GiB in {estimate.quant} at 4,096 tokens"
    return f"memory: {size}, and {terms.route} is taken to hold {held} GiB{named}"


def _against_size(row: Model, terms: Terms, embedded: bool) -> str:
    size = f"size: {row.params_total_b:g} B parameters are more than"
    if embedded:
        return f"{size} the fixed cases of this workbook need"
    if row.params_total_b > terms.start_b and not terms.failed_cases:
        return f"{size} {terms.start_b:g} B, where {terms.route} starts, and no case names the need (size alone)"
    return ""


def rejections(model: str, route: str) -> tuple[Rejection, ...]:
    """The standing alternatives to `model` on `route` that are refused, with their reasons; at least one."""
    weighed = ((name, refusal(name, route, model == EMBEDDED)) for name in CANDIDATES if name != model)
    return tuple(Rejection(name, reason) for name, reason in weighed if reason)


def reject(repo_id: str, route: str, reason: str = "") -> Rejection:
    """The checkpoint's family as a rejected alternative, for `reason` or for what the ladder finds against it.

    Raises LabError when neither says anything, because a rejection without a reason is only a taste.
    """
    row = find_model(repo_id)
    why = reason.strip() or refusal(row.repo_id, route, embedded=False)
    if not why:
        raise LabError(f"nothing speaks against {row.repo_id} on {route}", "give a reason of your own")
    return Rejection(f"{row.family} family ({row.repo_id.split('/')[-1]})", why)


def refusal_rows(names: Sequence[str], route: str) -> list[dict[str, str]]:
    """One row per checkpoint: what speaks against it on `route`, or that nothing does."""
    found = {name: refusal(name, route, embedded=False) for name in names}
    return [{"model": name, "verdict": "refused" if why else "possible", "reason": why} for name, why in found.items()]
