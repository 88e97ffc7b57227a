"""The lines of the quality checklist and the measurements behind them, read back without loading a model."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

GROWTH_LIMIT = 2.0  # MB for 100 generations; what a leak of one prompt's keys and values exceeds


@dataclass(frozen=True)
class Item:
    """One line of the checklist. `passed` is measured, never ticked; `limit` says what would have failed."""

    name: str
    passed: bool
    measured: str
    limit: str


@dataclass(frozen=True)
class Latency:
    """Seconds to the first token after a prompt of `tokens`: the median and the slowest of the repeats."""

    tokens: int
    seconds: float
    slowest: float


@dataclass(frozen=True)
class EdgeCase:
    """What became of an odd input: an answer (`refusal` empty), or the words of a refusal. `tokens` of its answer."""

    name: str
    tokens: int
    refusal: str


@dataclass(frozen=True)
class Checklist:
    """All lines, and the measurements behind them. `memory` are pairs of generation and resident MB (10^6 bytes);
    `slope` is milliseconds for a token of the prompt, `growth` MB for 100 generations."""

    model: str
    revision: str
    backend: str
    dtype: str
    items: tuple[Item, ...]
    latencies: tuple[Latency, ...]
    slope: float
    memory: tuple[tuple[int, float], ...]
    growth: float
    edge_cases: tuple[EdgeCase, ...]

    @property
    def passed(self) -> bool:
        return all(item.passed for item in self.items)

    def as_dict(self) -> dict:
        return {**asdict(self), "passed": self.passed}


def growth_of(memory: Sequence[tuple[int, float]]) -> float:
    """MB for 100 generations after the first quarter, which fills buffers: the slope of the least squares."""
    return 100 * slope_of(memory[len(memory) // 4 :])


def slope_of(points: Sequence[tuple[float, float]]) -> float:
    """Of the straight line with the least squares through the points."""
    return statistics.linear_regression(*zip(*points, strict=True)).slope
