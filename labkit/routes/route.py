"""A route's file, read as a frozen dataclass: papermill takes the same file (`papermill -f`), so that notebooks, runner
and verification cannot disagree about it."""

from dataclasses import dataclass, fields
from pathlib import Path

import yaml

from labkit.errors import LabError
from labkit.layout import ROUTES

ROUTE_NAMES = ("local_cpu", "free_colab", "rented_gpu")
SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where it is built in: a class is a thousand packs


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


def load_route(name: str) -> Route:
    """The route called `name`. Raises LabError for an unknown name or a YAML file with missing or extra fields."""
    path = ROUTES / f"{name}.yaml"
    if name not in ROUTE_NAMES or not path.exists():
        raise LabError(f"there is no route called {name!r}", f"choose one of {', '.join(ROUTE_NAMES)}")
    return parse_route(path)


def load_routes() -> tuple[Route, ...]:
    return tuple(load_route(name) for name in ROUTE_NAMES)


def parse_route(path: Path) -> Route:
    """The route in the file at `path`. Raises LabError for missing or unknown fields."""
    values = yaml.load(path.read_text(encoding="utf-8"), Loader=SAFE_LOADER)
    wanted = {field.name for field in fields(Route)}
    if set(values) != wanted:
        odd = ", ".join(sorted(set(values) ^ wanted))
        raise LabError(f"{path.name} has missing or unknown fields: {odd}", "compare it with local_cpu.yaml")
    return Route(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
