"""The lines of the quality checklist and the measurements behind them, read back without loading a model."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

GROWTH_LIMIT = 2.0  # MB for 100 generations; what a leak of one prompt's keys and values exceeds
SPREAD_LIMIT = 3.0  # slowest over median at one length
TOO_LONG = "ten contexts long"  # the odd input that must be refused


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


def measured_items(
    latencies: Sequence[Latency], slope: float, growth: float, generations: int, edges: Sequence[EdgeCase]
) -> tuple[Item, ...]:
    """The lines that follow from these measurements alone, without a model's answers."""
    return _memory(growth, generations), _latency(latencies, slope), _edges(edges)


def _memory(growth: float, generations: int) -> Item:
    measured = f"{growth:+.2f} MB for 100 generations, over {generations}"
    return Item("memory growth", growth <= GROWTH_LIMIT, measured, f"{GROWTH_LIMIT} MB for 100")


def _latency(rows: Sequence[Latency], slope: float) -> Item:
    worst = max(rows, key=lambda row: row.slowest / row.seconds)
    spread = worst.slowest / worst.seconds
    shortest, longest = (f"{1000 * row.seconds:.1f} ms at {row.tokens} tokens" for row in (rows[0], rows[-1]))
    measured = f"{shortest}, {longest}, {slope:.3f} ms a token; slowest {spread:.1f} x the median, at {worst.tokens}"
    return Item(
        "latency over length", spread <= SPREAD_LIMIT, measured, f"{SPREAD_LIMIT:.0f} x the median of its length"
    )


def _edges(found: Sequence[EdgeCase]) -> Item:
    refused = [case.name for case in found if case.refusal]
    good = all(case.refusal or case.tokens for case in found) and TOO_LONG in refused
    measured = f"{len(found) - len(refused)} answered, refused with a reason: {', '.join(refused) or 'none'}"
    return Item("edge cases", good, measured, "an input too long is refused, any other is answered or refused")
