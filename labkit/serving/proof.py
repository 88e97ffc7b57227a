"""The content of shutdown_proof.json: what is known of a server's end, and by whom.

A process can prove that it finished its answers and closed its port, and not that it is gone: that is said by whoever
is there afterwards, `labkit stop` or the parent of an engine.
"""

from datetime import datetime

from labkit.evidence import utc_now

NOT_PROVABLE = "not provable by the process itself"


def shutdown_proof(
    *,
    pid: int,
    port: int,
    model: str,
    started: str,
    signal: str,
    port_closed: bool,
    process_gone: bool | str = NOT_PROVABLE,
    gpu_memory: str = NOT_PROVABLE,
    hourly_usd: float = 0.0,
    **more: object,
) -> dict:
    """The proof of an end that is now. The cost is that of the time since `started`, at `hourly_usd` an hour."""
    stopped = utc_now()
    seconds = (datetime.fromisoformat(stopped) - datetime.fromisoformat(started)).total_seconds()
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
    return {"hourly_usd": hourly_usd, "cost_usd": round(hourly_usd * seconds / 3600, 4)}
