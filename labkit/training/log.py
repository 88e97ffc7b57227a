"""A row of training_log.csv, and the line that a terminal shows for it. Loads without torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LogRow:
    """One row of training_log.csv. Losses are nats per scored token; `train_loss` is the mean since the last row.

    In the row before the first step there is no such mean, and both losses are the held-out one.
    `mfu` is the share of the GPU's peak arithmetic that was used (0 to 1), blank where the peak is not known.
    """

    step: int
    train_loss: float
    val_loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_second: float
    mfu: float | str
    device: str
    elapsed_seconds: float


LOG_COLUMNS = tuple(LogRow.__dataclass_fields__)


def trace_line(row: LogRow) -> str:
    share = f" | MFU {row.mfu:.1%}" if row.mfu != "" else ""
    return (
        f"step {row.step} | train loss {row.train_loss:.4f} | held-out loss {row.val_loss:.4f} | "
        f"learning rate {row.learning_rate:.2e} | {row.tokens_per_second:.0f} tokens/s{share} | {row.device}"
    )
