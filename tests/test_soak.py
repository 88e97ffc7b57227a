"""benchmarks/soak.py: seconds of overload with clients that leave, and that each broken promise is named."""

import importlib.util
import sys
from collections import Counter
from pathlib import Path

import pytest

from labkit.evidence import read_json

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "soak.py"
REST = {"taken": {"running": 0, "waiting": 0}, "asked_at_once": 3, "statuses": {"200": 3}, "most_running": 2}
REST |= {"rss_mib": 300.0, "files": 9, "threads": 5}
LIMITS = {"concurrency": 2, "queue": 1}


@pytest.fixture(scope="module")
def soak():
    spec = importlib.util.spec_from_file_location("benchmark_soak", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_seconds_of_overload_leave_the_server_whole(soak, server, tmp_path, capsys):
    results = tmp_path / "soak.json"
    words = ["--minutes", "0.1", "--base-url", server.base_url, "--kinds", "text", "--results", str(results)]
    soak.main([*words, "--plot", str(tmp_path / "memory.png")])
    found = read_json(results)
    assert [promise for promise, kept in found["promises"].items() if not kept and "flat" not in promise] == []
    assert set(found["statuses"]) == {"200", "503"}
    assert found["left_by_their_client"] > 0
    assert found["at_rest_after"]["taken"] == {"running": 0, "waiting": 0}
    assert found["at_rest_after"]["statuses"] == {"200": 2}
    assert found["clients"] == 4
    assert -0.5 < found["memory_mib"]["growth"] < 0.5
    assert "kept   no 500" in capsys.readouterr().out
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({}, []),
        ({"statuses": Counter({200: 9, 503: 4, 500: 1})}, ["no 500, and every refusal is 429 or 503"]),
        ({"without_retry_after": 1}, ["every refusal has Retry-After"]),
        ({"errors": Counter({"ReadError": 1})}, ["no answer breaks off"]),
        ({"left": 0}, ["some were answered, some refused, some left"]),
        ({"after": {"statuses": {"200": 2, "503": 1}}}, ["all places can be taken at once"]),
        ({"after": {"taken": {"running": 1, "waiting": 0}}}, ["nothing is running or waiting"]),
        ({"after": {"most_running": 1}}, ["the full concurrency runs together"]),
        ({"after": {"files": 10}}, ["no file is left open"]),
        ({"after": {"threads": 10}}, ["no thread is left"]),
        ({"growth": 0.06}, ["memory is flat within 5%"]),
    ],
)
def test_every_promise_that_is_broken_is_named(soak, change, broken):
    met = {"statuses": Counter({200: 9, 503: 4}), "left": 5} | change
    after, growth = REST | met.pop("after", {}), met.pop("growth", -0.04)
    kept = soak.promises(soak.Tally(**met), REST, after, {"growth": growth}, LIMITS)
    assert [promise for promise, held in kept.items() if not held] == broken


def test_memory_is_compared_after_the_warm_up(soak):
    sizes = [100.0, 150.0, 200.0, 200.0, 210.0, 210.0, 210.0, 230.0, 220.0, 220.0]
    samples = [soak.Sample(second, size, 9, 5) for second, size in enumerate(sizes)]
    assert soak.memory_of(samples) == {"after_warm_up": 200.0, "at_the_end": 220.0, "growth": 0.1}
    assert soak.memory_of(samples[:3]) is None
