"""What serving costs when one card does not do: cards counted from memory, dollars from the price rows."""

import math
from dataclasses import dataclass

from labkit.landscape.memory import GB, memory_estimate
from labkit.landscape.prices import Price, load_prices

MEMORY_SHARE = 0.85  # of a card, for weights and cache: what the engines' rows of engines.csv start with
CONTEXT, REQUESTS = 4096, 8  # tokens of a request, and requests at once
PIECE = 512  # tokens of each request that are read in one step: engines read a long prompt in pieces
DAY_HOURS, MONTH_DAYS = 8, 22  # of somebody who gives the machines back every evening
MONTH_HOURS = 730  # a machine that nobody gives back: 8760 / 12
MODELS = (
    ("Qwen/Qwen2.5-7B-Instruct", "bf16"),
    ("meta-llama/Llama-3.3-70B-Instruct", "AWQ"),
    ("meta-llama/Llama-3.3-70B-Instruct", "bf16"),
)
CARDS = (("RunPod Community", "L40S"), ("RunPod Community", "A100 PCIe"), ("RunPod Secure", "H100 SXM"))


@dataclass(frozen=True)
class Move:
    """One model on one kind of card. `cards` is a power of two, which the heads of these models divide by."""

    model: str
    quant: str
    memory_gb: float
    price: Price
    cards: int

    @property
    def usd_per_hour(self) -> float:
        return self.cards * self.price.usd_per_hour


def moves() -> tuple[Move, ...]:
    """Every model of MODELS on every card of CARDS."""
    offers = {(row.provider, row.gpu): row for row in load_prices()}
    return tuple(_move(model, quant, offers[card]) for model, quant in MODELS for card in CARDS)


def _move(model: str, quant: str, price: Price) -> Move:
    needed = memory_estimate(model, quant, CONTEXT, REQUESTS, PIECE).total / GB
    cards = 2 ** math.ceil(math.log2(max(1.0, needed / (price.vram_gb * MEMORY_SHARE))))
    return Move(model, quant, needed, price, cards)


def moving_table() -> str:
    """The table of deploy/README.md."""
    head = (
        "| model | weights | memory, GB | card (provider, price, seen) | cards | $ an hour | $ a month, 8 h x 22 days |"
    )
    lines = [f"{head} $ a month, never given back |", "|---|---|---|---|---|---|---|---|"]
    for move in moves():
        price, hour = move.price, move.usd_per_hour
        card = f"{price.gpu}, {price.vram_gb} GB ({price.provider}, ${price.usd_per_hour:.2f}, {price.seen})"
        cells = (move.model.partition("/")[2], move.quant, f"{move.memory_gb:.1f}", card, move.cards, f"{hour:.2f}")
        months = (f"{hour * DAY_HOURS * MONTH_DAYS:,.0f}", f"{hour * MONTH_HOURS:,.0f}")
        lines.append(f"| {' | '.join(map(str, (*cells, *months)))} |")
    return "\n".join(lines)
