"""Two servers under the same load, in turns, so that a machine that slows down slows both.

A ratio of two figures from the same minute says more than two figures from different days.
"""

import statistics
from collections.abc import Mapping, Sequence

from labkit.benchmark.levels import claim, client_counts
from labkit.benchmark.measure import PERCENTILE_METHOD, Load, Target, run_level
from labkit.errors import LabError
from labkit.evidence import utc_now

COMPARED = ("tokens_per_second", "ttft_p50_ms", "p95_ms")


def compare(
    a: Target,
    b: Target,
    load: Load,
    concurrency: int | Sequence[int] = 1,
    rounds: int = 5,
    *,
    route: str = "local_cpu",
    devices: tuple[str, str] = ("cpu", "cpu"),
) -> dict:
    """The content of benchmark_comparison.json: for each number of clients, the rounds and the ratios a / b.

    In each round both run the whole level, `a` first in the first round, `b` first in the second, and so on, so that
    neither always meets the warmer machine. Raises LabError as `run_level` does.
    """
    clients = client_counts(concurrency)
    if rounds < 1:
        raise LabError(f"{rounds} rounds compare nothing", "give --rounds 1 or more; 5 show a spread")
    sides = {"a": a, "b": b}
    head = {
        side: {"base_url": target.base_url, "model": target.shown_model, "device": device}
        for (side, target), device in zip(sides.items(), devices, strict=True)
    }
    when = utc_now()
    levels = []
    for count in clients:
        held = [_round(sides, load, count, number) for number in range(rounds)]
        levels.append({"concurrency": count, "ratios": ratios(held), "rounds": held})
    settings = {"time": when, "route": route, **load.settings(), "percentile_method": PERCENTILE_METHOD}
    device = devices[0] if devices[0] == devices[1] else "mixed"
    return {**head, **settings, "ratio": "a / b", "levels": levels, "claim": claim(route, device)}


def _round(sides: Mapping[str, Target], load: Load, count: int, number: int) -> dict:
    order = ("a", "b") if number % 2 == 0 else ("b", "a")
    figures = {side: run_level(sides[side], load, count)[0] for side in order}
    return {"first": order[0], "a": figures["a"], "b": figures["b"]}


def ratios(rounds: Sequence[Mapping]) -> dict[str, dict | None]:
    """The spread of a / b over the rounds, for each figure of COMPARED; None for a figure that a side does not have."""
    return {name: spread([ratio(held["a"][name], held["b"][name]) for held in rounds]) for name in COMPARED}


def ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def spread(values: Sequence[float | None]) -> dict | None:
    """Median, smallest and largest of `values`; None when one of them is not known."""
    if not values or None in values:
        return None
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 3) for name, value in found.items()}
