"""Minutes of twice the load that `labkit serve` takes, with clients that leave: does it stay whole?

    python benchmarks/soak.py --minutes 10
    python benchmarks/soak.py --minutes 2 --base-url http://127.0.0.1:8000

Twice as many clients as the server has places (concurrency + queue) ask without a pause: half of them for streams, some
for JSON or two answers at once. Every third leaves each of its requests at a random moment. Afterwards no slot may
be taken, and all places are asked for at once. Meanwhile memory, files and threads of the server's process are read.
Without --base-url the script starts a server of its own; of another one only the requests are seen. Prints what it
found, writes benchmarks/results/soak.json, and ends with 1 when the server broke one of its promises.
"""

import argparse
import asyncio
import contextlib
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import httpx2
import psutil

from labkit.endpoint import auth_headers, first_model, open_client, read_health, read_json_page, root_url
from labkit.environment import environment_report
from labkit.errors import LabError
from labkit.evaluation.cases import load_cases
from labkit.evidence import json_text, utc_now, write_atomically
from labkit.serving.contract import Limits
from labkit.serving.ports import free_port
from labkit.serving.running import recorded_model, server_pid
from labkit.serving.runtimes import start_server

RESULTS = Path(__file__).resolve().parent / "results" / "soak.json"
OVERLOAD = 2  # clients for each place
LEAVING = 3  # every third client leaves
CHAT = "/v1/chat/completions"
REST = 1.0  # seconds until the connections of clients that are gone have ended
PATIENCE = 120.0  # seconds; an answer or a refusal that takes longer is an error
SAMPLES_EVERY = 5.0  # seconds
WARM_UP, WINDOW = 0.2, 0.25  # parts of the run: what is not counted, and what is compared with the last such part
FLAT = 0.05
FEW_THREADS = 4  # the readers of prompts come when they are needed, and stay; the rate limiter's comes and goes
# Rates are counted, and nobody is refused for them: a client that is told to wait a minute is no load.
LIMITS = Limits(concurrency=4, queue=8, max_output_tokens=64, requests_per_minute=1_000_000)
# What a request asks for beside its text, and how often among ten.
KINDS = {"text": ({}, 8), "json": ({"response_format": {"type": "json_object"}}, 1), "two": ({"n": 2}, 1)}


@dataclass
class Tally:
    """What the clients met. `statuses` counts answers by HTTP status; `errors` what was no HTTP answer, or a bad one.

    `left` are the requests that their client left before the end, `seconds` the latencies of whole answers.
    """

    statuses: Counter = field(default_factory=Counter)
    errors: Counter = field(default_factory=Counter)
    left: int = 0
    without_retry_after: int = 0
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Sample:
    """The server's process and its children at one moment."""

    second: float
    rss_mib: float
    files: int
    threads: int


@dataclass(frozen=True)
class Asked:
    """What the clients ask for. `limits` are the server's; a token has at least one letter."""

    model: str
    limits: dict
    kinds: tuple[str, ...]

    @property
    def places(self) -> int:
        return self.limits["concurrency"] + self.limits["queue"]

    @cached_property
    def prompts(self) -> list[str]:
        return [case.full_prompt()[: self.limits["max_input_tokens"] // 3] for case in load_cases()]

    def body(self, chance: random.Random) -> dict:
        text, (kinds, often) = chance.choice(self.prompts), zip(*(KINDS[kind] for kind in self.kinds), strict=True)
        body = self.plain(text) | {"max_tokens": chance.randint(8, self.limits["max_output_tokens"])}
        return body | {"stream": chance.random() < 0.5} | chance.choices(kinds, often)[0]

    def plain(self, text: str = "Hello!") -> dict:
        return {"model": self.model, "messages": [{"role": "user", "content": text}], "max_tokens": 32}


async def client(number: int, http: httpx2.AsyncClient, asked: "Asked", end: float, tally: Tally) -> None:
    """Ask until `end` (monotonic), and after a refusal only when it says so."""
    chance = random.Random(number)
    while time.monotonic() < end:
        usual = statistics.median(tally.seconds[-50:]) if tally.seconds else 1.0
        leaves = chance.uniform(0, usual) if number % LEAVING == 0 else None
        await asyncio.sleep(await ask(http, asked.body(chance), leaves, tally))


async def ask(http: httpx2.AsyncClient, body: dict, leaves: float | None, tally: Tally) -> float:
    """One request, left after `leaves` seconds where that is a number; for how long to wait until the next one."""
    started = time.monotonic()
    try:
        async with asyncio.timeout(PATIENCE if leaves is None else leaves):
            async with http.stream("POST", CHAT, json=body) as response:
                text = (await response.aread()).decode()
    except TimeoutError:
        if leaves is None:
            tally.errors[f"no answer within {PATIENCE:g} s"] += 1
        else:
            tally.left += 1
        return 0.0
    except httpx2.HTTPError as error:
        tally.errors[type(error).__name__] += 1
        return 0.1
    tally.statuses[response.status_code] += 1
    if response.status_code == 200:
        tally.seconds.append(time.monotonic() - started)
        if body["stream"] and not text.rstrip().endswith("data: [DONE]"):
            tally.errors["a stream without its end"] += 1
        return 0.0
    wait = response.headers.get("Retry-After", "")
    tally.without_retry_after += response.status_code in (429, 503) and not wait.isdigit()
    return min(float(wait), 5.0) if wait.isdigit() else 0.1


def sample(pid: int, second: float) -> Sample:
    process = psutil.Process(pid)
    rss = sum(one.memory_info().rss for one in (process, *process.children(recursive=True))) / 2**20
    files = process.num_fds() if hasattr(process, "num_fds") else process.num_handles()
    return Sample(round(second, 1), round(rss, 2), files, process.num_threads())


async def watch(pid: int, end: float, every: float) -> list[Sample]:
    """Samples until `end` (monotonic), of a process of this machine that this user may look into."""
    started, samples = time.monotonic(), []
    while time.monotonic() < end:
        samples.append(sample(pid, time.monotonic() - started))
        await asyncio.sleep(every)
    return samples


async def load(url: str, asked: Asked, seconds: float, pid: int | None) -> tuple[Tally, list[Sample]]:
    """`seconds` of clients, OVERLOAD for each place."""
    tally, end, count = Tally(), time.monotonic() + seconds, OVERLOAD * asked.places
    pool = httpx2.Limits(max_connections=None, max_keepalive_connections=count)
    options = {"headers": auth_headers(), "timeout": None, "limits": pool, "trust_env": False}
    async with httpx2.AsyncClient(base_url=url, **options) as http, asyncio.TaskGroup() as group:
        watching = group.create_task(watch(pid, end, min(SAMPLES_EVERY, seconds / 20))) if pid else None
        for number in range(count):
            group.create_task(client(number, http, asked, end, tally))
    return tally, watching.result() if watching else []


async def at_rest(url: str, asked: Asked, pid: int | None) -> dict:
    """What is taken while nobody asks, what becomes of as many requests as there are places, and what stays of them."""
    idle, most = read_health(url), 0
    async with httpx2.AsyncClient(base_url=url, headers=auth_headers(), timeout=PATIENCE, trust_env=False) as http:
        for kind in asked.kinds:  # what is loaded at its first use is there before anything is measured
            await http.post(CHAT, json=asked.plain() | KINDS[kind][0])
        answers = asyncio.gather(*(http.post(CHAT, json=asked.plain()) for _ in range(asked.places)))
        while not answers.done():
            most = max(most, (await http.get("/health")).json().get("running", 0))
            await asyncio.sleep(0.02)
        statuses = Counter(str(answer.status_code) for answer in await answers)
    await asyncio.sleep(REST)
    left = vars(sample(pid, 0)) if pid else {}
    taken = {key: idle.get(key, "not told") for key in ("running", "waiting")}
    return {"taken": taken, "asked_at_once": asked.places, "statuses": dict(statuses), "most_running": most, **left}


def memory_of(samples: Sequence[Sample]) -> dict | None:
    """The medians (MiB) of the first window after the warm-up and of the last, and by what part memory grew."""
    size, first = int(len(samples) * WINDOW), int(len(samples) * WARM_UP)
    if size < 2:
        return None
    values = [sample.rss_mib for sample in samples]
    before, after = statistics.median(values[first : first + size]), statistics.median(values[-size:])
    return {"after_warm_up": round(before, 2), "at_the_end": round(after, 2), "growth": round(after / before - 1, 4)}


def promises(tally: Tally, before: dict, after: dict, memory: dict | None, limits: dict) -> dict[str, bool]:
    """What a server must keep under this load, and whether it did; what could not be seen is left out."""
    refused = set(tally.statuses) - {200}
    kept = {
        "no 500, and every refusal is 429 or 503": refused <= {429, 503},
        "every refusal has Retry-After": tally.without_retry_after == 0,
        "no answer breaks off": not tally.errors,
        "some were answered, some refused, some left": bool(tally.statuses[200] and refused and tally.left),
        "all places can be taken at once": after["statuses"] == {"200": after["asked_at_once"]},
    }
    if after["taken"]["running"] != "not told":
        kept["nothing is running or waiting"] = after["taken"] == {"running": 0, "waiting": 0}
        kept["the full concurrency runs together"] = after["most_running"] == limits["concurrency"]
    if memory:
        kept["no file is left open"] = after["files"] <= before["files"]
        kept["no thread is left"] = after["threads"] <= before["threads"] + FEW_THREADS
        kept[f"memory is flat within {FLAT:.0%}"] = abs(memory["growth"]) <= FLAT
    return kept


@contextlib.contextmanager
def server(options: argparse.Namespace) -> Iterator[str]:
    """The server that was named, or one of our own with its log in a folder that goes afterwards."""
    if options.base_url:
        yield root_url(options.base_url)
        return
    with tempfile.TemporaryDirectory() as folder:
        log, port = Path(folder) / "log", free_port()
        with start_server(options.model, port=port, device=options.device, limits=LIMITS, log=log) as handle:
            yield handle.base_url


def enforced(url: str, options: argparse.Namespace) -> dict:
    """The limits that the server tells at /contract, else those of the options."""
    told = None
    with contextlib.suppress(OSError):
        told = read_json_page(f"{url}/contract")
    held = {"max_input_tokens": 1024, "max_output_tokens": 64}
    held |= {"concurrency": options.concurrency, "queue": options.queue}
    return held | (told["limits"] if isinstance(told, dict) and "limits" in told else {})


def soak(url: str, options: argparse.Namespace) -> dict:
    limits, pid = enforced(url, options), server_pid(url)
    asked = Asked(recorded_model(url) or first_model(open_client(url)), limits, tuple(options.kinds.split(",")))
    before = asyncio.run(at_rest(url, asked, pid))
    tally, samples = asyncio.run(load(url, asked, options.minutes * 60, pid))
    time.sleep(REST)
    after, memory = asyncio.run(at_rest(url, asked, pid)), memory_of(samples)
    report = environment_report("cpu")
    return {
        "time": utc_now(),
        "machine": {"cpu": report.cpu, "cores": report.cores, "torch": report.torch},
        "model": asked.model,
        "minutes": options.minutes,
        "clients": OVERLOAD * asked.places,
        "limits": limits,
        "requests": sum(tally.statuses.values()) + tally.left + sum(tally.errors.values()),
        "statuses": {str(status): count for status, count in sorted(tally.statuses.items())},
        "left_by_their_client": tally.left,
        "errors": dict(tally.errors),
        "refused_without_retry_after": tally.without_retry_after,
        "at_rest_before": before,
        "at_rest_after": after,
        "memory_mib": memory,
        "promises": promises(tally, before, after, memory, limits),
        "samples": [vars(sample) for sample in samples],
    }


def said(found: dict) -> str:
    lines = [
        f"{found['machine']['cpu']}, {found['model']}, {found['minutes']:g} minutes, {found['clients']} clients",
        f"{found['requests']} requests: {found['statuses']} by status, {found['left_by_their_client']} left by their "
        f"client, errors: {found['errors'] or 'none'}",
        f"before: {found['at_rest_before']}",
        f"after:  {found['at_rest_after']}",
        f"memory (MiB): {found['memory_mib']}",
    ]
    lines += [f"{'kept  ' if kept else 'BROKEN'} {promise}" for promise, kept in found["promises"].items()]
    return "\n".join(lines)


def write_plot(found: dict, path: Path) -> None:
    from labkit.plots.figure import BLUE, Plot

    figure = Plot()
    axes = figure.subplots()
    axes.plot([s["second"] for s in found["samples"]], [s["rss_mib"] for s in found["samples"]], color=BLUE)
    axes.set(xlabel="seconds", ylabel="resident memory of the server (MiB)", ylim=(0, None))
    axes.grid(alpha=0.3)
    write_atomically(path, figure._repr_png_())


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--base-url", help="a server that runs already")
    parser.add_argument("--model", default="mini-instruct", help="for the server that the script starts")
    parser.add_argument("--device", default="cpu", help="for the server that the script starts")
    parser.add_argument("--concurrency", type=int, default=4, help="of a server without /contract")
    parser.add_argument("--queue", type=int, default=8, help="of a server without /contract")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of requests: text, json, two (answers)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path, help="a PNG of the memory over time")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    options = arguments(words)
    with server(options) as url:
        found = soak(url, options)
    write_atomically(options.results, json_text(found).encode())
    if options.plot:
        write_plot(found, options.plot)
    print(said(found))
    return 0 if all(found["promises"].values()) else 1


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except LabError as error:
        raise SystemExit(f"error: {error.what}\nnext: {error.next_step}") from None
