"""Why a model is not taken: its licence, its memory, or a size that the task does not need."""

from collections.abc import Sequence
from dataclasses import dataclass

from labkit.errors import LabError
from labkit.landscape.licences import commercial_use, licence_names, licences_of
from labkit.landscape.memory import memory_estimate
from labkit.landscape.models import EMBEDDED, find_model
from labkit.routes import load_route

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


def refusal(repo_id: str, route: str, embedded: bool = True) -> str:
    """Why the checkpoint is not taken on `route`, or "" when nothing speaks against it.

    Down the ladder: a licence that nobody verified or that forbids production, then memory at 4,096 tokens in bf16,
    then (where the `embedded` model is the choice) a size that the task does not need. Raises LabError for an unknown
    checkpoint.
    """
    row = find_model(repo_id)
    if not licences_of(row.repo_id):
        return "licence: it was not verified, and an unread licence is no permission"
    if commercial_use(row.repo_id) == "no":
        return f"licence: the {licence_names(row.repo_id)} does not allow production use"
    need, held = memory_estimate(row).total_gib, load_route(route).memory_gib
    if need is None:
        return "memory: what it needs could not be computed from verified dimensions"
    if need > held:
        return f"memory: about {need:.1f} GiB in bf16 at 4,096 tokens, and {route} is taken to hold {held} GiB"
    if embedded:
        return f"size: {row.params_total_b:g} B parameters are more than the fixed cases of this workbook need"
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
