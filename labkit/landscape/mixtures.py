"""Dense against mixture of experts: what must lie in memory, and what one token has to read of it."""

from collections.abc import Sequence

from labkit.landscape.memory import GIB
from labkit.landscape.models import find_model
from labkit.landscape.tables import UNKNOWN


def mixture_rows(names: Sequence[str]) -> list[dict[str, str]]:
    """One row per model in bf16: total and active parameters, memory that is resident, memory read for one token.

    Resident is the total (a router may choose any expert for the next token); read is the active part, which bounds
    the speed of a single stream and says nothing about a full batch, where most experts are in use.
    """
    return [_row(name) for name in names]


def _row(name: str) -> dict[str, str]:
    model = find_model(name)
    total = model.params_total_b
    active = total if model.kind == "dense" else model.params_active_b
    return {
        "model": model.repo_id.split("/")[-1],
        "kind": model.kind,
        "total": UNKNOWN if total is None else f"{total:.1f} B",
        "active": UNKNOWN if active is None else f"{active:.1f} B",
        "active share": UNKNOWN if not (total and active) else f"{100 * active / total:.0f} %",
        "resident in bf16": UNKNOWN if total is None else f"{2e9 * total / GIB:.0f} GiB",
        "read per token in bf16": UNKNOWN if active is None else f"{2e9 * active / GIB:.0f} GiB",
        "source": model.source_url,
    }
