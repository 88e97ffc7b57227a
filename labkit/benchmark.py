"""Latency and throughput of any OpenAI-compatible server, measured through its own streaming API.

Tokens are counted from the usage chunk, because chunks are not tokens. What a number may claim depends on the route
it was measured on, so the result says that too.
"""

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from labkit.endpoint import first_model, open_client, root_url
from labkit.errors import LabError
from labkit.evidence import utc_now

PERCENTILE_METHOD = "nearest rank: the smallest measured value that at least p percent of the values do not exceed"
LOCAL_CLAIM = "local measurement, no throughput claim"


@dataclass(frozen=True)
class Row:
    """One answered request. TTFT is the time to the first piece of text, the whole latency for an empty answer."""

    latency_ms: float
    ttft_ms: float
    completion_tokens: int


def percentile(values: Sequence[float], p: float) -> float:
    """The `p`-th percentile of `values` (0 < p <= 100) by nearest rank: always a value that was really measured."""
    return sorted(values)[max(0, math.ceil(p / 100 * len(values)) - 1)]


def benchmark(
    base_url: str,
    prompts: Sequence[str],
    requests: int,
    concurrency: int = 1,
    max_tokens: int = 64,
    warmup: int = 2,
    *,
    route: str = "local_cpu",
    device: str = "cpu",
    model: str | None = None,
    api_key: str | None = None,
) -> dict:
    """The content of benchmark.json: `requests` streamed chats, the `prompts` in turn, `concurrency` at a time.

    `warmup` requests go first and are not counted. tokens_per_second is all completion tokens over the wall-clock
    seconds of the measured part. A request that fails is counted in `errors` with its kind, and has no row. `device`
    is what the server runs on, as its /health says.
    Raises LabError when no server answers, no request succeeds, or the server does not report its token usage.
    """
    if not prompts or requests < 1 or concurrency < 1 or max_tokens < 1 or warmup < 0:
        raise LabError("a benchmark needs prompts, and at least one request, client and token", "check the numbers")
    client = open_client(base_url, api_key, timeout=300)
    model = model or first_model(client)
    for number in range(warmup):
        _measure(client, model, prompts[number % len(prompts)], max_tokens)
    started = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as pool:
        turns = (prompts[number % len(prompts)] for number in range(requests))
        results = list(pool.map(lambda prompt: _measure(client, model, prompt, max_tokens), turns))
    seconds = time.perf_counter() - started
    rows = [result for result in results if isinstance(result, Row)]
    failures = [result for result in results if isinstance(result, str)]
    if not rows:
        raise LabError(f"none of {requests} requests was answered: {failures[0]}", "run `labkit smoke` and mend that")
    settings = {"requests": requests, "concurrency": concurrency, "max_tokens": max_tokens, "warmup": warmup}
    head = {
        "base_url": root_url(base_url),
        "time": utc_now(),
        "model": model,
        "route": route,
        "device": device,
        **settings,
    }
    return {
        **head,
        **_figures(rows, seconds),
        **_errors(failures),
        "rows": [asdict(row) for row in rows],
        **_claim(route, device),
    }


def _figures(rows: list[Row], seconds: float) -> dict:
    latencies, firsts = [row.latency_ms for row in rows], [row.ttft_ms for row in rows]
    tokens = sum(row.completion_tokens for row in rows)
    return {
        "p50_ms": percentile(latencies, 50),
        "p95_ms": percentile(latencies, 95),
        "ttft_p50_ms": percentile(firsts, 50),
        "ttft_p95_ms": percentile(firsts, 95),
        "percentile_method": PERCENTILE_METHOD,
        "completion_tokens": tokens,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 2),
    }


def _errors(failures: list[str]) -> dict:
    return {"errors": len(failures), "error_kinds": {kind: failures.count(kind) for kind in sorted(set(failures))}}


def _claim(route: str, device: str) -> dict:
    """Only a GPU that the learner controls carries a claim about throughput, and only for this load."""
    controlled = route == "rented_gpu" and device == "cuda"
    return {"claim": "throughput of this GPU, model and load only" if controlled else LOCAL_CLAIM}


def _measure(client, model: str, prompt: str, max_tokens: int) -> Row | str:
    """One streamed chat: its Row, or the kind of its failure."""
    import openai

    started, first, tokens = time.perf_counter(), None, None
    try:
        stream = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=max_tokens,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        for chunk in stream:
            if first is None and chunk.choices and chunk.choices[0].delta.content:
                first = time.perf_counter() - started
            if chunk.usage is not None:
                tokens = chunk.usage.completion_tokens
    except openai.APIStatusError as error:
        return f"HTTP {error.status_code}: {error.message}"[:200]
    except openai.APIError as error:
        return f"{type(error).__name__}: {error.message}"[:200]
    latency = time.perf_counter() - started
    if tokens is None:
        raise LabError(
            "the server sends no usage chunk, so its tokens cannot be counted",
            "measure a server that honours stream_options.include_usage",
        )
    return Row(round(latency * 1000, 2), round((latency if first is None else first) * 1000, 2), tokens)
