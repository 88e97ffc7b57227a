"""A server at several numbers of clients: the content of benchmark.json.

What a number may claim depends on the route it was measured on, so the result says that too.
"""

from collections.abc import Sequence
from dataclasses import asdict, fields

from labkit.benchmark.measure import PERCENTILE_METHOD, Load, Row, open_target, run_level
from labkit.errors import LabError
from labkit.evidence import Pack, utc_now

LOCAL_CLAIM = "local measurement, no throughput claim"


def benchmark(
    base_url: str,
    prompts: Sequence[str],
    requests: int,
    concurrency: int | Sequence[int] = 1,
    max_tokens: int = 64,
    warmup: int = 1,
    *,
    stream: bool = True,
    route: str = "local_cpu",
    device: str = "cpu",
    model: str | None = None,
    api_key: str | None = None,
    server_pid: int | None = None,
) -> dict:
    """The content of benchmark.json: `levels`, the figures for each number of clients, and `rows`, their requests.

    Each level sends `requests` chats after `warmup` for each client (Load). `device` is what the server runs on, as
    its /health says; `server_pid` its process, where that is one of this machine.
    Raises LabError when no server answers, no request of a level succeeds, or the server reports no token usage.
    """
    load = Load(tuple(prompts), requests, max_tokens, warmup, stream)
    clients = client_counts(concurrency)
    target = open_target(base_url, model, api_key, server_pid)
    head = {
        "base_url": target.base_url,
        "time": utc_now(),
        "model": target.shown_model,
        "route": route,
        "device": device,
    }
    measured = [run_level(target, load, count) for count in clients]
    return {
        **head,
        **load.settings(),
        "percentile_method": PERCENTILE_METHOD,
        "levels": [level for level, _ in measured],
        "rows": [asdict(row) for _, rows in measured for row in rows],
        "claim": claim(route, device),
    }


def client_counts(asked: int | str | Sequence[int | str]) -> tuple[int, ...]:
    """The numbers of clients in `asked`, rising and each once: 4, "1,4,8", or several of either.

    Raises LabError for anything that is not a number from 1 to 1024.
    """
    several = (asked,) if isinstance(asked, int | str) else asked
    words = [word.strip() for part in several for word in str(part).split(",")]
    if not words or not all(word.isascii() and word.isdigit() and 1 <= int(word) <= 1024 for word in words):
        raise LabError(
            f"{', '.join(words) or 'nothing'!r} is no list of numbers of clients",
            "give numbers from 1 to 1024, for example --concurrency 1,4,8",
        )
    return tuple(sorted({int(word) for word in words}))


def claim(route: str, device: str) -> str:
    """Only a GPU that the learner controls carries a claim about throughput, and only for this load."""
    controlled = route == "rented_gpu" and device == "cuda"
    return "throughput of this GPU, model and load only" if controlled else LOCAL_CLAIM


def write_benchmark(pack: Pack, report: dict) -> None:
    """benchmark.json, and its rows once more as benchmark_rows.csv, for a spreadsheet."""
    with pack.replacing("benchmark.json", "benchmark_rows.csv"):
        pack.write_json("benchmark.json", report, "13.4")
        pack.write_csv("benchmark_rows.csv", report["rows"], [field.name for field in fields(Row)], "13.4")
