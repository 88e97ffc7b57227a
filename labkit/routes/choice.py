"""Which route a learner should take, from what they have and need, and the drill that asks for it."""

from dataclasses import dataclass

from labkit.routes.route import Route, load_route


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
