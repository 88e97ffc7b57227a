"""The three compute routes: what each proves, what it cannot, and which one a learner should take.

A route is one YAML file in notebooks/routes that papermill takes as it is (`papermill -f`). The same file is read here
as a frozen dataclass, so notebooks, runner and verification cannot disagree about it.
"""

import math
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml

from labkit.errors import LabError
from labkit.layout import ROUTES

ROUTE_NAMES = ("local_cpu", "free_colab", "rented_gpu")
SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where it is built in: a class is a thousand packs
ACCEPTANCE_STEPS = 500  # of a training run on CUDA: one of fewer has barely left its warm-up, and stays a smoke test


@dataclass(frozen=True)
class Route:
    """One compute route. `minutes` maps lesson to minutes of work; `required_artifacts` are names in the pack.

    Loss bands are explained at `loss_band_says`.
    `next_model` is what to look at once the embedded model has proved the loop there, `runtime` what would run it, and
    `memory_gib` what a machine of this route is taken to hold. `device` is what the route is meant to run on ("cpu" or
    "cuda"): a route that wants CUDA and finds none records that and uses the `fallback_` sizes on the CPU.
    """

    route: str
    title: str
    goal: str
    device: str
    proves: tuple[str, ...]
    cannot_prove: tuple[str, ...]
    stop_rule: str
    fallback: str
    upgrade_signal: str
    required_artifacts: tuple[str, ...]
    minutes: dict[str, int]
    model: str
    next_model: str
    runtime: str
    memory_gib: int
    train_steps: int
    fallback_train_steps: int
    batch_size: int
    loss_band: tuple[float, ...]
    fallback_batch_size: int
    fallback_loss_band: tuple[float, ...]
    max_new_tokens: int
    lever_seeds: tuple[int, ...]
    benchmark_requests: int
    hourly_usd: float
    budget_usd: float


@dataclass(frozen=True)
class Constraints:
    """What the learner has and needs. `budget_usd` is what may be spent on the whole chapter."""

    has_nvidia_gpu: bool = False
    private_data: bool = False
    needs_throughput: bool = False
    needs_stable_api: bool = False
    budget_usd: float = 0.0
    can_use_google: bool = True


@dataclass(frozen=True)
class RouteDecision:
    route: str
    reasons: tuple[str, ...]
    upgrade_signal: str


def load_route(name: str) -> Route:
    """The route called `name`. Raises LabError for an unknown name or a YAML file with missing or extra fields."""
    path = ROUTES / f"{name}.yaml"
    if name not in ROUTE_NAMES or not path.exists():
        raise LabError(f"there is no route called {name!r}", f"choose one of {', '.join(ROUTE_NAMES)}")
    return _parse(path)


def load_routes() -> tuple[Route, ...]:
    return tuple(load_route(name) for name in ROUTE_NAMES)


def _parse(path: Path) -> Route:
    values = yaml.load(path.read_text(encoding="utf-8"), Loader=SAFE_LOADER)
    wanted = {field.name for field in fields(Route)}
    if set(values) != wanted:
        odd = ", ".join(sorted(set(values) ^ wanted))
        raise LabError(f"{path.name} has missing or unknown fields: {odd}", "compare it with local_cpu.yaml")
    return Route(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def choose_route(constraints: Constraints) -> RouteDecision:
    """The weakest route that can prove what is asked for, with every reason that led there.

    Weakest first because a stronger route costs money or trust: private data keeps off Colab, throughput and a stable
    API need a GPU of one's own, and a rented one needs a budget.
    """
    needs_gpu = constraints.needs_throughput or constraints.needs_stable_api
    reasons = []
    if constraints.needs_throughput:
        reasons.append("throughput and latency can only be claimed from a GPU that you control")
    if constraints.needs_stable_api:
        reasons.append("free Colab sessions end without notice, so a stable API needs another machine")
    if needs_gpu and constraints.budget_usd > 0:
        reasons.append(f"a budget of ${constraints.budget_usd:.2f} allows a rented GPU with a stop time")
        return _decision("rented_gpu", reasons)
    if needs_gpu:
        reasons.append("there is no budget for a rented GPU yet, so prove the loop first and claim nothing about speed")
    if constraints.private_data:
        reasons.append("private data stays on a machine that you control, which rules out free Colab")
    elif not constraints.can_use_google:
        reasons.append("free Colab needs a Google account")
    elif not constraints.has_nvidia_gpu:
        reasons.append("no NVIDIA GPU of one's own and nothing private: free Colab lends one for a single experiment")
        return _decision("free_colab", reasons)
    if constraints.has_nvidia_gpu:
        reasons.append("the local machine already has an NVIDIA GPU; local_cpu's sizes run on it unchanged")
    reasons.append("the whole loop runs on two CPU cores with the embedded model")
    return _decision("local_cpu", reasons)


def _decision(name: str, reasons: list[str]) -> RouteDecision:
    return RouteDecision(name, tuple(reasons), load_route(name).upgrade_signal)


def typical_constraints(route: Route, has_nvidia_gpu: bool = False) -> Constraints:
    """The needs that `route` was made for: where a learner starts before writing down their own.

    A GPU in a Colab session is not the learner's own, so there it does not count.
    """
    if route.route == "rented_gpu":
        return Constraints(has_nvidia_gpu, needs_throughput=True, needs_stable_api=True, budget_usd=route.budget_usd)
    local = route.route == "local_cpu"
    return Constraints(has_nvidia_gpu and local, private_data=local)


def training_size(
    route: Route,
    device: str,
    planned: tuple[int, int],
    fallback: tuple[int, int],
    gpu: tuple[str, float] | None = None,
) -> tuple[int, int, str]:
    """Steps, batch size, and why: a GPU route without its GPU takes `fallback`, any other run what was `planned`.

    `gpu` is the card's name and its memory in GiB. The batch was planned for one of
    `route.memory_gib`; it doubles with each doubling of memory beyond that and halves below, so that a larger card is
    not left idle and a smaller one not overrun. A card may show a tenth less than its name says.
    """
    if route.device == "cuda" and device != "cuda":
        return *fallback, f"{route.route} wants a GPU and this machine shows none, so the fallback applies"
    steps, batch = planned
    if route.device != "cuda" or not gpu:
        return steps, batch, f"the size that {route.route} plans for {route.device}"
    card, gib = gpu
    fitted = max(1, int(batch * 2.0 ** math.floor(math.log2(1.1 * gib / route.memory_gib))))
    why = f"{route.route} plans batches of {batch} for a card of {route.memory_gib} GiB"
    return steps, fitted, f"{why}, and this {card} has {gib:.1f}"


def loss_band_says(route: Route, device: str, loss: float) -> str:
    """Whether a run's last held-out loss is where runs of this size ended before; what to look at when it is not.

    `loss_band` is (lowest, highest) in nats per token for the route file's own training size, empty where nobody
    measured it; the fallback sizes have a band of their own.
    """
    band = route.fallback_loss_band if route.device == "cuda" and device != "cuda" else route.loss_band
    if not band:
        return "no band was measured for this size on this device: verify against a second run of your own"
    low, high = band
    where = f"the band {low:.2f} to {high:.2f} of runs of this size"
    if low <= loss <= high:
        return f"held-out loss {loss:.2f} is inside {where}"
    look = "the text, the seed and the sizes" if loss < low else "the learning rate, and whether every step ran"
    return f"held-out loss {loss:.2f} is outside {where}: look at {look}"


@dataclass(frozen=True)
class Scenario:
    """One question of 13.1's drill: a situation in words, and the same as constraints."""

    situation: str
    constraints: Constraints


DRILL = (
    Scenario(
        "A clinic wants to try answers over its own patient letters. Laptops only, no budget.",
        Constraints(private_data=True),
    ),
    Scenario(
        "A student wants to see one training run on a GPU. Public data, a Google account, no money.",
        Constraints(),
    ),
    Scenario(
        "A course needs an API that stays up for an afternoon of 30 people. There are 20 dollars.",
        Constraints(needs_stable_api=True, needs_throughput=True, budget_usd=20.0),
    ),
)


def planned_stop(route: Route, start: datetime, earlier_plan: str = "") -> str:
    """When a rented machine is given back at the latest: UTC, ISO 8601 to the minute.

    The budget divided by the hourly price, or the minutes of the route's lessons, whichever is shorter. A stop time
    that `earlier_plan` (the text of a gpu_plan.md) already names is kept: running the lesson again must not extend it.
    Raises LabError when the route file has no budget or no price.
    """
    for line in earlier_plan.splitlines():
        if line.startswith("- Stop time: ") and line[13:].strip():
            return line[13:].strip()
    if route.hourly_usd <= 0 or route.budget_usd <= 0:
        raise LabError(
            "a rented machine needs a budget and an hourly price",
            "fill hourly_usd and budget_usd in the route file",
            where=f"{route.route}.yaml",
        )
    hours = min(route.budget_usd / route.hourly_usd, sum(route.minutes.values()) / 60)
    return (start.astimezone(UTC) + timedelta(hours=hours)).isoformat(timespec="minutes")


def compute_route_markdown(
    route: Route, decision: RouteDecision, device: str, device_reason: str, stop_time: str = ""
) -> str:
    """The text of compute_route.md: what this route proves, what it cannot, and why it was taken.

    When `choose_route` would have taken another route, the reason says so; when a GPU was expected and is absent, the
    missing GPU is recorded beside the fallback. `stop_time` is required on rented_gpu (see `planned_stop`).
    """
    reason = "; ".join(decision.reasons)
    if decision.route != route.route:
        reason = f"chosen by the learner; the rule would take {decision.route} because {reason}"
    fields = {
        "Route": route.route,
        "Device": f"{device} ({device_reason})",
        "Proves": "; ".join(route.proves),
        "Cannot prove": "; ".join(route.cannot_prove),
        "Fallback": route.fallback,
        "Stop rule": route.stop_rule,
        "Reason": reason,
        "Upgrade signal": decision.upgrade_signal,
    }
    if route.device == "cuda" and device != "cuda":
        fields["Missing GPU"] = f"this route expects cuda and found {device}; the fallback is in use"
    if route.route == "rented_gpu":
        fields["Budget"] = f"${route.budget_usd:.2f}"
        fields["Stop time"] = stop_time
        fields["Evidence to copy back"] = ", ".join(route.required_artifacts)
    return _form("Compute route", fields)


def gpu_plan_markdown(route: Route, stop_time: str, gpu: str, price: str) -> str:
    """The text of gpu_plan.md: what is rented, at which price, until when, and what must be home before it stops.

    `gpu` is what torch sees on this machine; `price` is one line with provider, source and the date it was seen.
    """
    hours = route.budget_usd / route.hourly_usd
    return _form(
        "GPU plan",
        {
            "GPU on this machine": gpu,
            "Price row": price,
            "Hourly price": f"${route.hourly_usd:.2f}",
            "Budget": f"${route.budget_usd:.2f}, which pays for {hours:.1f} hours",
            "Stop time": stop_time,
            "Stop rule": route.stop_rule,
            "Evidence to copy back": ", ".join(route.required_artifacts),
            "Before leaving": f"stop the server with `labkit stop --route {route.route} --hourly {route.hourly_usd:g}` "
            "(and --out where the pack is not in its usual folder), copy the pack back (`labkit copy-back`, at home), "
            "verify the copy, then delete the machine and its disk at the provider",
            "Proof of stop": "shutdown_proof.json, and the provider's page showing no machine",
        },
    )


def colab_notes_markdown(route: Route, host: str, gpu: str, evidence: str, saved: str, in_drive: bool = False) -> str:
    """The text of colab_notes.md: what this session had, and what to do after the reset that will come.

    `host` is whose session it is, empty on a machine that stays. `evidence` is where the pack lies and `saved` where
    its second copy is, as they may be shown; `in_drive` is whether that also takes the snapshots of a training.
    """
    snapshots = (
        "since its last snapshot, which is in Drive as well, so that another machine goes on from it"
        if in_drive
        else "since it began (its snapshots lie on the session's disk, so a restarted kernel goes on from them, and a "
        "new machine does not)"
    )
    return _form(
        "Colab notes",
        {
            "Session": host or "not Colab: the route was tried on another machine",
            "GPU in this session": gpu,
            "What a reset deletes": "every file and package on the session's disk: the workbook, the pack in "
            f"{evidence}, what was installed, downloaded models and the exports made of them",
            "Where the pack is saved": f"{saved}, after each cell that changed it",
            "Lost for good": f"what a cell had not finished: a training run {snapshots}, an evaluation, a running "
            "server, and edits to the workbook's own files",
            "Start again": "open the notebook and run it from the top: its first line says where you stopped; where "
            "there is no Drive, upload the saved zip file first",
            "Versions": "requirements-freeze.txt of this pack; compare it after a reset",
            "Data rule": "nothing private is uploaded",
            "Stop rule": route.stop_rule,
        },
    )


def _form(title: str, fields: dict[str, str]) -> str:
    return f"# {title}\n\n" + "".join(f"- {key}: {value}\n" for key, value in fields.items())
