"""One request to a server, and one level of load: so many clients at once, each with one request at a time.

Tokens are counted from the usage that the server reports, because chunks are not tokens.
"""

import math
import os
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import psutil

from labkit.endpoint import first_model, open_client, root_url
from labkit.errors import LabError
from labkit.layout import display_path

PERCENTILE_METHOD = "nearest rank: the smallest measured value that at least p percent of the values do not exceed"
PERCENTILES = (50, 95, 99)
P95_LIMIT_MS = 5000.0  # of the slowest level, which a release on a GPU of one's own is asked for
MEMORY_SECONDS = 0.1  # between two looks at the server's memory


@dataclass(frozen=True)
class Row:
    """One answered request, the `request`-th of its level (from 0), which sent the `prompt`-th of the prompts.

    TTFT is the time to the first piece of text, the whole latency for an empty answer, and None for an answer that
    was not streamed. TPOT, the time per output token after the first, is (latency - TTFT) / (tokens - 1); None where
    there is no second token.
    """

    concurrency: int
    request: int
    prompt: int
    latency_ms: float
    ttft_ms: float | None
    tpot_ms: float | None
    completion_tokens: int


@dataclass(frozen=True)
class Load:
    """What every level sends: `requests` greedy chats, the prompts in turn, each with its number as its seed.

    Before them each client sends `warmup` requests that are not counted. Raises LabError for a load of nothing.
    """

    prompts: tuple[str, ...]
    requests: int
    max_tokens: int = 64
    warmup: int = 1
    stream: bool = True

    def __post_init__(self):
        if not self.prompts or self.requests < 1 or self.max_tokens < 1 or self.warmup < 0:
            raise LabError(
                "a benchmark needs prompts, and at least one request and one token",
                "give --requests and --max-tokens 1 or more, and --warmup 0 or more",
            )

    def settings(self) -> dict:
        """The settings as a result records them: the prompts as their number."""
        seeds = "the number of the request at its level, from 0"
        return {**asdict(self), "prompts": len(self.prompts), "temperature": 0, "seed": seeds}


@dataclass(frozen=True)
class Target:
    """A server to measure. `pid` is its process on this machine, None where that is not known for certain."""

    base_url: str
    model: str
    client: object
    pid: int | None = None

    @property
    def shown_model(self) -> str:
        """The model as an artifact may name it: some servers want the path of a folder, artifacts want none."""
        return display_path(Path(self.model)) if os.path.isabs(self.model) else self.model


def open_target(base_url: str, model: str | None = None, api_key: str | None = None, pid: int | None = None) -> Target:
    """The server at `base_url`, with the first model that it lists unless `model` is given. Raises LabError."""
    client = open_client(base_url, api_key, timeout=300)
    return Target(root_url(base_url), model or first_model(client), client, pid)


def percentile(values: Sequence[float], p: float) -> float:
    """The `p`-th percentile of `values` (0 < p <= 100) by nearest rank: always a value that was really measured."""
    return sorted(values)[max(0, math.ceil(p / 100 * len(values)) - 1)]


def run_level(target: Target, load: Load, concurrency: int) -> tuple[dict, list[Row]]:
    """The figures of one level of benchmark.json, and the rows they were made from.

    A request that fails is counted in `errors` with its kind, and has no row.
    Raises LabError when no request succeeds, or the server does not report its token usage.
    """
    ask = partial(_ask, target, load, concurrency)
    with ThreadPoolExecutor(concurrency) as pool:
        list(pool.map(ask, range(load.warmup * concurrency)))
        with PeakMemory(target.pid) as memory:
            started = time.perf_counter()
            results = list(pool.map(ask, range(load.requests)))
            seconds = time.perf_counter() - started
    rows = [result for result in results if isinstance(result, Row)]
    failures = [result for result in results if isinstance(result, str)]
    if not rows:
        what = f"none of {load.requests} requests was answered, {concurrency} at a time: {failures[0]}"
        raise LabError(what, "run `labkit smoke` and mend that", target.base_url)
    head = {"concurrency": concurrency, "requests": load.requests, **count_errors(failures)}
    return {**head, **figures(rows, seconds), "peak_memory_mib": memory.mib}, rows


def figures(rows: Sequence[Row], seconds: float) -> dict:
    """Rates over `seconds`, the wall clock of the measured part, and percentiles in ms; None where nothing was seen."""
    tokens = sum(row.completion_tokens for row in rows)
    rates = {
        "seconds": round(seconds, 3),
        "completion_tokens": tokens,
        "tokens_per_second": round(tokens / seconds, 2),
        "requests_per_second": round(len(rows) / seconds, 3),
    }
    latency = _percentiles("", (row.latency_ms for row in rows))
    first = _percentiles("ttft_", (row.ttft_ms for row in rows))
    return {**rates, **latency, **first, **_percentiles("tpot_", (row.tpot_ms for row in rows))}


def _percentiles(name: str, values: Iterable[float | None]) -> dict:
    known = [value for value in values if value is not None]
    return {f"{name}p{p}_ms": percentile(known, p) if known else None for p in PERCENTILES}


def count_errors(failures: Sequence[str]) -> dict:
    return {"errors": len(failures), "error_kinds": {kind: failures.count(kind) for kind in sorted(set(failures))}}


def time_per_token(latency_ms: float, ttft_ms: float | None, tokens: int) -> float | None:
    return None if ttft_ms is None or tokens < 2 else round((latency_ms - ttft_ms) / (tokens - 1), 3)


def _ask(target: Target, load: Load, concurrency: int, number: int) -> Row | str:
    """One chat: its Row, or the kind of its failure."""
    import openai

    place = number % len(load.prompts)
    body = {
        "model": target.model,
        "messages": [{"role": "user", "content": load.prompts[place]}],
        "max_tokens": load.max_tokens,
        "temperature": 0,
        "seed": number,
    }
    try:
        latency, first, usage = (_streamed if load.stream else _whole)(target.client, body)
    except openai.APIStatusError as error:
        return f"HTTP {error.status_code}: {error.message}"[:200]
    except openai.APIError as error:
        return f"{type(error).__name__}: {error.message}"[:200]
    if usage is None:
        remedy = "measure it with --no-stream, or measure a server that honours stream_options.include_usage"
        raise LabError("the server sends no usage, so its tokens cannot be counted", remedy, target.base_url)
    latency_ms, ttft_ms = round(latency * 1000, 2), None if first is None else round(first * 1000, 2)
    tokens = usage.completion_tokens
    return Row(concurrency, number, place, latency_ms, ttft_ms, time_per_token(latency_ms, ttft_ms, tokens), tokens)


def _streamed(client, body: dict):
    """(latency, TTFT, usage) of a streamed chat, in seconds. Some servers send usage on the finish chunk."""
    started, first, usage = time.perf_counter(), None, None
    for chunk in client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True}):
        if first is None and chunk.choices and _text(chunk.choices[0].delta):
            first = time.perf_counter() - started
        usage = chunk.usage or usage
    latency = time.perf_counter() - started
    return latency, latency if first is None else first, usage


def _text(delta) -> str | None:
    return delta.content or getattr(delta, "reasoning_content", None)


def _whole(client, body: dict):
    started = time.perf_counter()
    answer = client.chat.completions.create(**body)
    return time.perf_counter() - started, None, answer.usage


class PeakMemory:
    """The largest resident memory, in MiB, that a process and its children had while the block ran.

    Sampled, so a shorter peak is missed. `mib` is None where there is no such process, or it may not be looked at.
    """

    def __init__(self, pid: int | None):
        self.mib: float | None = None
        self._family, self._done = _family(pid), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(MEMORY_SECONDS):
            self._look()

    def _look(self) -> None:
        try:
            held = sum(process.memory_info().rss for process in self._family)
        except psutil.Error:
            return
        if self._family:
            self.mib = max(self.mib or 0.0, round(held / 2**20, 1))


def _family(pid: int | None) -> list[psutil.Process]:
    try:
        return [] if pid is None else [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []
