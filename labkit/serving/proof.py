"""The content of shutdown_proof.json: what is known of a server's end, and by whom.

A process can prove that it finished its answers and closed its port, and not that it is gone: that is said by whoever
is there afterwards, `labkit stop` or the parent of an engine.
"""

import math
import os
from datetime import datetime, timedelta
from pathlib import Path

from labkit.errors import LabError
from labkit.evidence import utc_now

NOT_PROVABLE = "not provable by the process itself"


def shutdown_proof(
    *,
    pid: int,
    port: int | str,
    model: str,
    started: str,
    signal: str,
    port_closed: bool,
    process_gone: bool | str = NOT_PROVABLE,
    gpu_memory: str = NOT_PROVABLE,
    hourly_usd: float = 0.0,
    seconds: float | None = None,
    **more: object,
) -> dict:
    """The proof of an end that is now. The cost is that of the time since `started`, at `hourly_usd` an hour.

    `seconds` is that time where a steady clock measured it: then the end is told by the clock as it stood at the start.
    """
    stopped = utc_now()
    if seconds is None:
        seconds = (datetime.fromisoformat(stopped) - datetime.fromisoformat(started)).total_seconds()
    else:
        stopped = (datetime.fromisoformat(started) + timedelta(seconds=seconds)).isoformat(timespec="seconds")
    return {
        "pid": pid,
        "port": port,
        "model": model,
        "process_gone": process_gone,
        "port_closed": port_closed,
        "gpu_memory": gpu_memory,
        "started": started,
        "stopped": stopped,
        "seconds": seconds,
        **cost(seconds, hourly_usd),
        "signal": signal,
        **more,
    }


def cost(seconds: float, hourly_usd: float) -> dict:
    """Raises LabError for a price that is none."""
    if not 0 <= hourly_usd < math.inf:
        raise LabError(f"{hourly_usd} is not a price for an hour", "give --hourly a number of US dollars")
    return {"hourly_usd": hourly_usd, "cost_usd": round(hourly_usd * seconds / 3600, 4)}


def check_proof_options(file: Path | None, hourly_usd: float) -> None:
    """Raises LabError, at the start and not at the end, for a price that is none and a file that cannot be written."""
    cost(0, hourly_usd)
    if file and (file.is_dir() or not os.access(file.absolute().parent, os.W_OK)):
        what = f"the proof {file.name} cannot be written there"
        raise LabError(what, "give --proof a file in a folder that exists and that you may write to")
