"""The benchmark counts what the server really did, and says what its numbers may not claim."""

import contextlib
import io
import itertools
import json
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from rich.console import Console
from tiny_server import SMALL, live

from labkit.benchmark import (
    LOCAL_CLAIM,
    Load,
    Row,
    benchmark,
    client_counts,
    compare,
    open_target,
    percentile,
    ratios,
    spread,
    watch_stream,
    write_benchmark,
)
from labkit.benchmark.measure import PeakMemory, figures, time_per_token
from labkit.errors import LabError
from labkit.evidence import Pack, read_csv, read_manifest
from labkit.report.service import print_benchmark, print_comparison
from labkit.serving.running import server_pid
from labkit.verification.reading import PackReader
from labkit.verification.release_checks import check_benchmark


@pytest.fixture(scope="module")
def url(tiny_model):
    with live(tiny_model, SMALL) as base_url:
        yield base_url


@contextlib.contextmanager
def scripted(name: str, heard: list, usage: bool = True):
    """A real HTTP server that answers every chat with two words but the prompt "refuse me", and notes what it heard.

    Without `usage` it is a server as some are: its stream never says how many tokens it was.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = asked["messages"][0]["content"]
            heard.append((name, prompt, asked["seed"]))
            counts = {"usage": {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}}
            if prompt == "refuse me":
                self.say(400, json.dumps({"error": {"message": "no"}}))
            elif not asked.get("stream"):
                message = {"message": {"role": "assistant", "content": "hello there"}}
                self.say(200, json.dumps({"choices": [{"index": 0, **message}], **counts}))
            else:
                chunks = [{"choices": [{"index": 0, "delta": {"content": word}}]} for word in ("hello", " there")]
                chunks[-1] |= counts if usage else {}
                self.say(200, "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks), "text/event-stream")

        def say(self, status: int, text: str, kind: str = "application/json"):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def printed(write, report) -> str:
    console = Console(file=io.StringIO(), width=80)
    write(report, console)
    return console.file.getvalue()


def test_percentile_is_nearest_rank():
    values = [50, 15, 40, 20, 35]
    assert [percentile(values, p) for p in (5, 30, 40, 50, 95, 100)] == [15, 20, 20, 35, 50, 50]
    assert percentile([7], 95) == 7


def test_time_per_output_token_leaves_out_the_first_and_needs_a_second():
    assert time_per_token(100.0, 40.0, 4) == 20.0
    assert time_per_token(100.0, 40.0, 1) is time_per_token(100.0, None, 4) is None


def test_figures_of_known_rows():
    rows = [Row(2, n, 0, 100.0 * (n + 1), 10.0 * (n + 1), 5.0 + n if n else None, 10) for n in range(4)]
    found = figures(rows, seconds=2.0)
    assert (found["completion_tokens"], found["tokens_per_second"], found["requests_per_second"]) == (40, 20.0, 2.0)
    assert [found[f"p{p}_ms"] for p in (50, 95, 99)] == [200.0, 400.0, 400.0]
    assert [found[f"ttft_p{p}_ms"] for p in (50, 95, 99)] == [20.0, 40.0, 40.0]
    assert [found[f"tpot_p{p}_ms"] for p in (50, 95, 99)] == [7.0, 8.0, 8.0]
    unseen = figures([Row(1, 0, 0, 100.0, None, None, 10)], seconds=1.0)
    assert unseen["ttft_p50_ms"] is unseen["tpot_p99_ms"] is None


def test_numbers_of_clients_as_they_may_be_given():
    assert client_counts(4) == (4,)
    assert client_counts(["8, 1", "4", "1"]) == (1, 4, 8)
    for wrong in ("", "0", "1,x", "-2", "1025", "\u00b2", []):
        with pytest.raises(LabError, match="no list of numbers of clients"):
            client_counts(wrong)


def test_benchmark_measures_every_request_at_every_level(url):
    result = benchmark(url, ["hello", "there"], requests=6, concurrency="1,2", max_tokens=10)
    assert (result["model"], result["requests"], result["prompts"]) == ("tiny-llama", 6, 2)
    assert [(row["concurrency"], row["request"], row["prompt"]) for row in result["rows"]] == [
        (clients, number, number % 2) for clients in (1, 2) for number in range(6)
    ]
    for level, clients in zip(result["levels"], (1, 2), strict=True):
        rows = [row for row in result["rows"] if row["concurrency"] == clients]
        assert (level["concurrency"], level["errors"], level["completion_tokens"]) == (clients, 0, 60)
        assert level["tokens_per_second"] == pytest.approx(60 / level["seconds"], rel=0.05)
        assert all(0 < row["ttft_ms"] <= row["latency_ms"] and row["tpot_ms"] > 0 for row in rows)
        latencies = sorted(row["latency_ms"] for row in rows)
        assert (level["p50_ms"], level["p95_ms"]) == (latencies[2], latencies[5])
        assert level["peak_memory_mib"] is None  # nobody said which process it is
    assert result["claim"] == LOCAL_CLAIM
    assert "nearest rank" in result["percentile_method"]


def test_a_claim_about_throughput_needs_a_gpu_of_ones_own(url):
    def claim(route, device):
        return benchmark(url, ["hello"], 1, warmup=0, max_tokens=1, route=route, device=device)["claim"]

    assert claim("rented_gpu", "cpu") == claim("free_colab", "cuda") == LOCAL_CLAIM
    assert claim("rented_gpu", "cuda").startswith("throughput of this GPU")


def test_each_client_warms_up_and_only_then_is_counted():
    heard = []
    with scripted("s", heard) as base_url:
        result = benchmark(base_url, ["x", "y"], 4, [1, 3], warmup=2, model="m")
    assert len(heard) == (2 + 4) + (6 + 4)
    assert [(prompt, seed) for _, prompt, seed in heard[2:6]] == [("x", 0), ("y", 1), ("x", 2), ("y", 3)]
    assert [row["completion_tokens"] for row in result["rows"]] == [3] * 8  # from usage: there were two chunks


def test_refused_requests_are_errors_with_a_kind(url):
    result = benchmark(url, ["hello", "~" * 500], requests=4, max_tokens=2, warmup=0)
    level = result["levels"][0]
    assert (level["errors"], len(result["rows"])) == (2, 2)
    assert all(kind.startswith("HTTP 400") for kind in level["error_kinds"])
    assert "1 at a time, 2 times: HTTP 400" in printed(print_benchmark, result)


def test_a_benchmark_without_a_single_answer_is_an_error(url):
    with pytest.raises(LabError, match="none of 2 requests was answered, 1 at a time: HTTP 400"):
        benchmark(url, ["hello"], requests=2, max_tokens=100, warmup=0)
    for prompts, requests in (([], 2), (["hello"], 0)):
        with pytest.raises(LabError, match="needs prompts"):
            benchmark(url, prompts, requests)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(LabError, match="no server answers"):
        benchmark(f"http://127.0.0.1:{port}", ["hello"], requests=1)


def test_a_server_without_a_usage_chunk_is_measured_without_a_stream_or_not_at_all():
    with scripted("s", [], usage=False) as base_url:
        with pytest.raises(LabError, match="sends no usage") as refused:
            benchmark(base_url, ["x"], 2, model="m")
        assert "--no-stream" in refused.value.next_step
        result = benchmark(base_url, ["x"], 2, model="m", stream=False)
    assert result["levels"][0]["completion_tokens"] == 6
    assert result["rows"][0]["ttft_ms"] is result["rows"][0]["tpot_ms"] is result["levels"][0]["ttft_p50_ms"] is None
    assert result["stream"] is False


def test_peak_memory_is_that_of_a_process_that_is_there():
    with PeakMemory(os.getpid()) as held:
        pass
    assert held.mib > 50
    for pid in (None, 2**22 + 1):
        with PeakMemory(pid) as held:
            pass
        assert held.mib is None


def test_only_a_labkit_server_of_this_machine_has_a_known_process(server, url):
    assert server_pid(server.base_url) == server.pid
    assert server_pid(url) is server_pid("https://example.org") is server_pid("http://10.0.0.1:8000") is None


def test_two_servers_take_turns_and_change_who_is_first():
    heard = []
    with scripted("a", heard) as first, scripted("b", heard) as second:
        a, b = open_target(first, "m"), open_target(second, "/some/where/n")  # some servers want the whole path
        report = compare(a, b, Load(("x", "refuse me"), 2, warmup=0), [1, 2], rounds=3)
    assert [name for name, *_ in heard] == ["a", "a", "b", "b", "b", "b", "a", "a", "a", "a", "b", "b"] * 2
    assert [level["concurrency"] for level in report["levels"]] == [1, 2]
    assert [held["first"] for held in report["levels"][0]["rounds"]] == ["a", "b", "a"]
    assert all(held[side]["errors"] == 1 for held in report["levels"][1]["rounds"] for side in "ab")
    assert [report["a"], report["b"]] == [
        {"base_url": first, "model": "m", "device": "cpu"},
        {"base_url": second, "model": "n", "device": "cpu"},
    ]
    assert report["claim"] == LOCAL_CLAIM
    with pytest.raises(LabError, match="0 rounds compare nothing"):
        compare(a, b, Load(("x",), 2), rounds=0)


def test_ratios_of_known_rounds():
    def held(speed, first, last):
        return {"tokens_per_second": speed, "ttft_p50_ms": first, "p95_ms": last}

    rounds = [{"a": held(a, None, 10.0), "b": held(100.0, 5.0, 20.0)} for a in (90.0, 120.0, 300.0)]
    assert ratios(rounds) == {
        "tokens_per_second": {"median": 1.2, "min": 0.9, "max": 3.0},
        "ttft_p50_ms": None,
        "p95_ms": {"median": 0.5, "min": 0.5, "max": 0.5},
    }
    assert spread([]) is None
    side = {"base_url": "u", "model": "m", "device": "cpu"}
    counted = [{name: figures | {"errors": 1} for name, figures in one.items()} for one in rounds]
    level = {"concurrency": 8, "ratios": ratios(rounds), "rounds": counted}
    level["ratios"]["ttft_p50_ms"] = {"median": 0.555, "min": 0.5, "max": 0.6}
    shown = printed(print_comparison, {"a": side, "b": side, "levels": [level], "claim": LOCAL_CLAIM})
    assert "1.20 (0.90 to 3.00)" in shown  # on one line of 80 columns
    assert "0.56 (0.50 to 0.60)" in shown
    assert "3, 3" in shown
    assert LOCAL_CLAIM in shown


def test_a_real_server_is_measured_with_its_memory_and_verification_believes_the_file(server, tmp_path):
    pid = server_pid(server.base_url)
    report = benchmark(server.base_url, ["hello", "there"], 4, [1, 2], max_tokens=8, server_pid=pid)
    assert all(level["peak_memory_mib"] > 50 for level in report["levels"])
    pack = Pack(tmp_path, "local_cpu")
    write_benchmark(pack, report)
    assert check_benchmark(PackReader(tmp_path)).startswith("1 at a time: p50 ")
    rows = read_csv(tmp_path / "benchmark_rows.csv")
    assert [float(row["latency_ms"]) for row in rows] == [row["latency_ms"] for row in report["rows"]]
    assert {"benchmark.json", "benchmark_rows.csv"} == set(read_manifest(tmp_path)["files"])
    shown = printed(print_benchmark, report)
    assert "\u2026" not in shown  # no column is cut on 80 columns
    assert f" {report['levels'][1]['peak_memory_mib']:,.0f} " in shown
    assert LOCAL_CLAIM in shown


def test_a_streamed_answer_can_be_watched_as_it_arrives(url):
    *moments, last = watch_stream(url, "hello", max_tokens=8)
    assert [moment.pieces for moment in moments] == list(range(1, len(moments) + 1))
    assert all(later.text.startswith(moment.text) for moment, later in itertools.pairwise(moments))
    assert {moment.tokens for moment in moments} == {None}
    assert (last.text, last.tokens) == (moments[-1].text, 8)
    assert 0 < last.ttft_ms == moments[0].ttft_ms < last.elapsed_ms
    assert last.ms_each == pytest.approx((last.elapsed_ms - last.ttft_ms) / 7, abs=0.001)
    assert moments[0].ms_each is None
    assert moments[1].ms_each == pytest.approx(moments[1].elapsed_ms - last.ttft_ms, abs=0.001)


def test_a_stream_that_is_refused_or_has_no_server_is_a_clear_error(url):
    with pytest.raises(LabError, match="refused with 404"):
        list(watch_stream(url, "hello", model="no-such-model"))
    with pytest.raises(LabError, match="no server answers"):
        list(watch_stream("http://127.0.0.1:9", "hello"))
    with pytest.raises(LabError, match="the stream broke off"):
        list(watch_stream("http://127.0.0.1:9", "hello", model="known"))
