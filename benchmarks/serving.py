"""`labkit serve` beside other servers of the same weights on one machine, with one client and with several.

    python benchmarks/serving.py --rounds 5
    python benchmarks/serving.py --gguf mini-instruct-f32.gguf --llama-server llama.cpp/build/bin/llama-server

transformers serve is used where its command stands beside this Python or on PATH, llama-server where it is on PATH,
llama_cpp.server where this Python has it; each may be named instead. A server that is absent or does not start is
listed with the reason. One server runs at a time, since an idle one may still take processor time; they take turns, in
another order each round. Tokens are those of each server's own usage. Prints a Markdown table of medians and writes
every round to benchmarks/results/serving.json.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import torch

from labkit.benchmark import Load, benchmark, client_counts, percentile, spread
from labkit.endpoint import first_model, open_client, read_health
from labkit.environment import environment_report
from labkit.errors import LabError
from labkit.evaluation.cases import load_cases
from labkit.evidence import json_text, utc_now, write_atomically
from labkit.generation import Sampling, load_chat_model
from labkit.layout import MODELS, ROOT, without_paths
from labkit.serving.ports import free_port

RESULTS = Path(__file__).resolve().parent / "results" / "serving.json"
OURS = "labkit serve"  # with the backend that it chooses
WHOLE = "labkit serve, whole answers"  # beside servers that are asked for those
REFERENCE = "labkit serve --backend transformers"
CHAT = "/v1/chat/completions"
REPEATS = 5  # of each prompt, to measure what HTTP adds
READY_SECONDS, STOP_SECONDS = 180, 15
COLUMNS = ("tokens_per_second", "requests_per_second", "ttft_p50_ms", "tpot_p50_ms", "p95_ms", "peak_memory_mib")
HEAD = (
    "| server | clients | tokens/s (least to most) | default / it | transformers / it | requests/s | TTFT p50 "
    "| TPOT p50 | p95 | peak MiB | errors |"
)


@dataclass(frozen=True)
class Engine:
    """A server program. PORT in `command` stands for the port it is given; `absent` says why it cannot be run.

    `model` is the name to send where the server does not list it. Without `stream` it is asked for whole answers,
    because its streams never say how many tokens they were; then there is no TTFT.
    """

    name: str
    command: tuple[str, ...] = ()
    absent: str = ""
    model: str | None = None
    stream: bool = True

    def shown(self) -> str:
        """The command without this machine's folders."""
        return " ".join(Path(word).name if os.sep in word else word for word in self.command)


def engines(options: argparse.Namespace, clients: int) -> list[Engine]:
    """Ours with both backends first, then the others, each with its command or the reason why it has none."""
    ours = (sys.executable, "-m", "labkit.cli", "serve", "--model", options.model, "--port", "PORT", "--device", "cpu")
    ours = (*ours, "--concurrency", str(clients))
    return [
        Engine(OURS, ours),
        Engine(WHOLE, ours, stream=False),
        Engine(REFERENCE, (*ours, "--backend", "transformers")),
        *transformers_engines(options),
        *gguf_engines(options, clients),
    ]


def transformers_engines(options: argparse.Namespace) -> list[Engine]:
    """fp32 as labkit uses on a CPU: left alone, transformers takes the number format of the file."""
    beside = Path(sys.executable).parent / "transformers"
    program = shutil.which(options.transformers or (str(beside) if beside.exists() else "transformers"))
    names = ("transformers serve", "transformers serve --continuous-batching")
    if program is None:
        return [Engine(name, absent=f"no {options.transformers or 'transformers'} to run") for name in names]
    command = (program, "serve", options.model, "--host", "127.0.0.1", "--port", "PORT", "--device", "cpu")
    command += ("--dtype", "float32")
    batching = (*command, "--continuous-batching")
    return [Engine(name, words, model=options.model) for name, words in zip(names, (command, batching), strict=True)]


def gguf_engines(options: argparse.Namespace, clients: int) -> list[Engine]:
    """llama.cpp twice: its own server with a slot for each client, and the Python one, which has one for all."""
    server, python = shutil.which(options.llama_server), shutil.which(options.llama_cpp_python)
    if python is None or subprocess.run([python, "-c", "import llama_cpp.server"], capture_output=True).returncode:
        python = None
    file = str(options.gguf)
    address = ("--host", "127.0.0.1", "--port", "PORT")
    slots = ("-np", str(clients), "-c", str(1024 * clients), "-t", str(options.threads))
    alone = ("--n_ctx", "1024", "--n_threads", str(options.threads), "--interrupt_requests", "false")
    found = (
        ("llama_cpp.server", python, ("-m", "llama_cpp.server", "--model", file, *alone), False),
        ("llama-server", server, ("-m", file, *slots), True),
    )
    reason = "no GGUF file of the model: --gguf" if options.gguf is None else "no such program to run"
    return [
        Engine(name, (program, *words, *address), stream=stream)
        if program and options.gguf
        else Engine(name, absent=reason)
        for name, program, words, stream in found
    ]


@contextlib.contextmanager
def running(engine: Engine, threads: int, local: bool = True) -> Iterator[tuple[str, int]]:
    """(base URL, pid) of the engine on a free loopback port; however the block ends, the engine and its children end.

    A `local` model is a folder: then the engine meets an empty hub cache and no network. Raises LabError with its
    last words when it does not come up.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "hub").mkdir()  # without it transformers serve answers 500 at /v1/models
        log = Path(folder) / "log"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                [str(port) if word == "PORT" else word for word in engine.command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(threads, Path(folder) if local else None),
            )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(engine.name, process, url, log)
            yield url, process.pid
        finally:
            stop(process)


def environment(threads: int, hub: Path | None) -> dict[str, str]:
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    counts = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    offline = {"HF_HOME": str(hub), "HF_HUB_OFFLINE": "1"} if hub else {}
    return {**os.environ, **counts, **offline, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}


def wait_until_ready(name: str, process: subprocess.Popen, url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(LabError):
            if read_health(url, timeout=2)["status"] in ("ok", "not offered"):
                return
        time.sleep(0.2)
    words = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    why = f"not ready in {READY_SECONDS} s" if process.poll() is None else f"ended with status {process.returncode}"
    raise LabError(f"{why}: {words[-1][-200:] if words else 'without a word'}", "run its command by hand", name)


def stop(process: subprocess.Popen) -> None:
    """End the process and its children, asked first; an interrupt meanwhile ends the process at once."""
    try:
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
            process.terminate()
            for left in psutil.wait_procs(family, timeout=STOP_SECONDS)[1]:
                left.kill()
    finally:
        process.kill()
        process.wait()


def measure(
    found: Sequence[Engine], load: Load, clients: Sequence[int], rounds: int, threads: int, local: bool = True
) -> tuple[list[dict], dict[str, str]]:
    """The rounds of every engine, and why an engine has none or not all: it is left out from its first failure on."""
    reasons = {engine.name: engine.absent for engine in found if engine.absent}
    runs = []
    for number in range(rounds):
        for engine in (*found[number % len(found) :], *found[: number % len(found)]):
            if engine.name in reasons:
                continue
            try:
                with running(engine, threads, local) as (url, pid):
                    settings = vars(load) | {"stream": engine.stream, "model": engine.model, "server_pid": pid}
                    report = benchmark(url, concurrency=clients, **settings)
            except LabError as error:
                reasons[engine.name] = without_paths(error.what)
                continue
            runs.append({"round": number, "server": engine.name, "levels": report["levels"]})
            print(f"round {number + 1} of {rounds}: {engine.name}", file=sys.stderr, flush=True)
    return runs, reasons


def overhead(url: str, model: str, prompts: Sequence[str]) -> dict:
    """What HTTP, validation and the wait for a turn add to the engine: p50 in ms of one token, over HTTP and without.

    Both render the chat template and count the tokens. Each prompt goes one way and then at once the other, several
    times, and its first is not counted: after that both engines remember it, and what they add is not lost in the
    noise of reading it. The client is a socket that sends ready bytes, so that a library's time is not the server's.
    """
    loaded = load_chat_model(model, "cpu", backend="auto")
    name = first_model(open_client(url))
    served, in_process = [], []
    with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as connection:
        for prompt in prompts:
            messages = [{"role": "user", "content": prompt}]
            request = one_token_request(name, messages)
            for turn in range(REPEATS + 1):
                started = time.perf_counter()
                connection.sendall(request)
                status = read_status(connection)
                between = time.perf_counter()
                loaded.chat(messages, Sampling(max_tokens=1))
                if status == 200 and turn:
                    served.append((between - started) * 1000)
                    in_process.append((time.perf_counter() - between) * 1000)
    if not served:
        raise LabError(f"no request for one token was answered: status {status}", "run `labkit smoke`")
    both = {"http_p50_ms": percentile(served, 50), "in_process_p50_ms": percentile(in_process, 50)}
    return {**both, "added_ms": both["http_p50_ms"] - both["in_process_p50_ms"], "requests": len(served)}


def one_token_request(model: str, messages: Sequence[dict]) -> bytes:
    body = json.dumps({"model": model, "messages": messages, "max_tokens": 1, "temperature": 0}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


def read_status(connection: socket.socket) -> int:
    """The status of a whole answer, read to the end that its Content-Length says."""
    answer = connection.makefile("rb")
    status, length = int(answer.readline().split()[1]), 0
    while (line := answer.readline()).strip():
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    answer.read(length)
    return status


def table(runs: Sequence[dict], clients: Sequence[int]) -> str:
    """Medians over the rounds, times in ms; "default / it" and "transformers / it" are the median ratios of the tokens
    per second of labkit's two backends to the server's, of the same round.

    A server that was asked for whole answers, and so has no TTFT, is compared with labkit asked for the same."""
    lines = [HEAD, "|" + "---|" * (HEAD.count("|") - 1)]
    by_place = {(run["server"], level["concurrency"], run["round"]): level for run in runs for level in run["levels"]}
    for server in dict.fromkeys(run["server"] for run in runs):
        for count in clients:
            held = {place[2]: level for place, level in by_place.items() if place[:2] == (server, count)}
            speed, *rest = (spread([level[name] for level in held.values()]) for name in COLUMNS)
            cells = [f"{speed['median']:,.0f} ({speed['min']:,.0f} to {speed['max']:,.0f})"]
            asked_whole = next(iter(held.values()))["ttft_p50_ms"] is None
            ours = (WHOLE, None) if asked_whole else (OURS, REFERENCE)
            cells += [_cell(_ratios(by_place, mine, count, held), ".2f") for mine in ours]
            errors = sum(level["errors"] for level in held.values())
            lines.append(
                f"| {' | '.join([server, str(count), *cells, *(_cell(found) for found in rest), str(errors)])} |"
            )
    return "\n".join(lines)


def _ratios(by_place: dict, ours: str | None, count: int, held: dict) -> dict | None:
    mine = {number: by_place.get((ours, count, number)) for number in held}
    pairs = [(mine[number], level) for number, level in held.items() if mine[number]]
    return spread([own["tokens_per_second"] / its["tokens_per_second"] for own, its in pairs])


def _cell(found: dict | None, style: str = ",.1f") -> str:
    return format(found["median"], style) if found else ""


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(MODELS / "mini-instruct"), help="folder of a checkpoint, or a hub id")
    parser.add_argument("--gguf", type=Path, help="the same weights for llama.cpp, for instance in Q4_K_M")
    parser.add_argument("--transformers", default="", help="the transformers command")
    parser.add_argument("--llama-server", default="llama-server", help="the llama-server program")
    parser.add_argument("--llama-cpp-python", default=sys.executable, help="a Python with llama-cpp-python[server]")
    parser.add_argument("--clients", default="1,8")
    parser.add_argument("--requests", type=int, default=24, help="for each number of clients in each round")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each server")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    options = arguments(words)
    torch.set_num_threads(options.threads)
    local = Path(options.model).is_dir()
    clients, prompts = client_counts(options.clients), tuple(case.full_prompt() for case in load_cases())
    load = Load(prompts, options.requests, options.max_tokens)
    found = engines(options, max(clients))
    with running(found[0], options.threads, local) as (url, _):
        added = overhead(url, options.model, prompts)
    runs, reasons = measure(found, load, clients, options.rounds, options.threads, local)
    report = environment_report("cpu")
    machine = {"cpu": report.cpu, "cores": report.cores, "torch": report.torch, "threads": options.threads}
    commands = {engine.name: engine.shown() for engine in found if engine.command}
    head = {"time": utc_now(), "machine": machine, "model": Path(options.model).name, "commands": commands}
    held = {**head, "rounds": options.rounds, **load.settings(), "not_measured": reasons, "runs": runs}
    write_atomically(options.results, json_text(held | {"overhead": added}).encode())
    print(f"{report.cpu}, {options.threads} threads, {head['model']}, {options.rounds} rounds, times in ms\n")
    print(table(runs, clients), "\n")
    print("".join(f"not measured: {name}: {reason}\n" for name, reason in reasons.items()))
    print(
        "One token over HTTP takes {http_p50_ms:.1f} ms, in process {in_process_p50_ms:.1f} ms (p50 of "
        "{requests}): HTTP, validation and the wait for a turn add {added_ms:.1f} ms.".format(**added)
    )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a server is stopped then too
    try:
        main()
    except LabError as error:
        raise SystemExit(f"error: {error.what}\nnext: {error.next_step}") from None
