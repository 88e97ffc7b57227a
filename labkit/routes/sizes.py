"""How much a training run does on a route, and whether it ended where runs of that size end."""

import math

from labkit.routes.route import Route

ACCEPTANCE_STEPS = 500  # of a training run on CUDA: one of fewer has barely left its warm-up, and stays a smoke test


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
