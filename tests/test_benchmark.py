"""The benchmark counts what the server really did, and says what its numbers may not claim."""

import socket

import pytest
from tiny_server import SMALL, live

from labkit.benchmark import LOCAL_CLAIM, benchmark, percentile
from labkit.errors import LabError


@pytest.fixture(scope="module")
def url(tiny_model):
    with live(tiny_model, SMALL) as base_url:
        yield base_url


def test_percentile_is_nearest_rank():
    values = [50, 15, 40, 20, 35]
    assert [percentile(values, p) for p in (5, 30, 40, 50, 95, 100)] == [15, 20, 20, 35, 50, 50]
    assert percentile([7], 95) == 7


def test_benchmark_measures_every_request(url):
    result = benchmark(url, ["hello", "there"], requests=6, concurrency=2, max_tokens=10, warmup=1)
    assert (result["model"], result["requests"], result["concurrency"], result["errors"]) == ("tiny-llama", 6, 2, 0)
    assert [row["completion_tokens"] for row in result["rows"]] == [10] * 6
    assert result["completion_tokens"] == 60
    assert result["tokens_per_second"] == pytest.approx(60 / result["seconds"], rel=0.05)
    assert all(0 < row["ttft_ms"] <= row["latency_ms"] for row in result["rows"])
    latencies = sorted(row["latency_ms"] for row in result["rows"])
    assert (result["p50_ms"], result["p95_ms"]) == (latencies[2], latencies[5])
    assert result["claim"] == LOCAL_CLAIM
    assert "nearest rank" in result["percentile_method"]


def test_a_claim_about_throughput_needs_a_gpu_of_ones_own(url):
    def claim(route, device):
        return benchmark(url, ["hello"], 1, warmup=0, max_tokens=1, route=route, device=device)["claim"]

    assert claim("rented_gpu", "cpu") == claim("free_colab", "cuda") == LOCAL_CLAIM
    assert claim("rented_gpu", "cuda").startswith("throughput of this GPU")


def test_refused_requests_are_errors_with_a_kind(url):
    result = benchmark(url, ["hello", "~" * 500], requests=4, max_tokens=2, warmup=0)
    assert (result["errors"], len(result["rows"])) == (2, 2)
    assert all(kind.startswith("HTTP 400") for kind in result["error_kinds"])


def test_a_benchmark_without_a_single_answer_is_an_error(url):
    with pytest.raises(LabError, match="none of 2 requests was answered: HTTP 400"):
        benchmark(url, ["hello"], requests=2, max_tokens=100, warmup=0)
    with pytest.raises(LabError, match="needs prompts"):
        benchmark(url, [], requests=2)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(LabError, match="no server answers"):
        benchmark(f"http://127.0.0.1:{port}", ["hello"], requests=1)
