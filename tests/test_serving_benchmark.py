"""benchmarks/serving.py: absent servers are named, those that run are stopped, and the table says what the runs say."""

import contextlib
import importlib.util
import sys
from pathlib import Path

import psutil
import pytest

from labkit.errors import LabError
from labkit.evidence import read_json
from labkit.serving.ports import port_open

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "serving.py"


@pytest.fixture(scope="module")
def serving():
    spec = importlib.util.spec_from_file_location("benchmark_serving", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run_of(server: str, number: int, speed: float, errors: int = 0, ttft: float | None = 5.0) -> dict:
    level = {"concurrency": 1, "tokens_per_second": speed, "requests_per_second": 2.0, "ttft_p50_ms": ttft}
    level |= {"tpot_p50_ms": 8.5, "p95_ms": 1234.5, "peak_memory_mib": 300.0, "errors": errors}
    return {"round": number, "server": server, "levels": [level]}


def test_a_server_that_is_not_installed_is_named_with_the_reason(serving):
    options = serving.arguments(["--transformers", "no-such-program", "--gguf", "m.gguf", "--llama-server", "nowhere"])
    absent = {engine.name: engine.absent for engine in serving.engines(options, 8) if engine.absent}
    assert absent["transformers serve"] == "no no-such-program to run"
    assert absent["llama-server"] == "no such program to run"
    options = serving.arguments(["--llama-server", sys.executable])
    absent = {engine.name: engine.absent for engine in serving.engines(options, 8)}
    assert absent["llama-server"] == absent["llama_cpp.server"] == "no GGUF file of the model: --gguf"
    assert absent[serving.OURS] == ""


def test_a_command_gets_the_clients_and_shows_no_folder(serving):
    options = serving.arguments(["--gguf", "/some/where/m.gguf", "--llama-server", sys.executable, "--threads", "2"])
    found = {engine.name: engine for engine in serving.engines(options, 8)}
    assert found["llama-server"].shown().endswith("-m m.gguf -np 8 -c 8192 -t 2 --host 127.0.0.1 --port PORT")
    assert "/some" not in found["llama-server"].shown()
    assert found[serving.OURS].shown().endswith("--model mini-instruct --port PORT --device cpu --concurrency 8")


def test_the_table_holds_medians_and_ratios_of_the_same_round(serving):
    ours = [run_of(serving.OURS, number, speed) for number, speed in enumerate((100.0, 200.0, 300.0))]
    reference = [run_of(serving.REFERENCE, 2, 60.0)]
    other = [run_of("other", number, speed, errors=1) for number, speed in ((0, 50.0), (2, 300.0))]
    lines = serving.table([*ours, *reference, *other], [1]).splitlines()
    assert lines[2] == "| labkit serve | 1 | 200 (100 to 300) | 1.00 | 0.20 | 2.0 | 5.0 | 8.5 | 1,234.5 | 300.0 | 0 |"
    assert lines[4] == "| other | 1 | 175 (50 to 300) | 1.50 | 0.20 | 2.0 | 5.0 | 8.5 | 1,234.5 | 300.0 | 2 |"
    assert all(line.count("|") == lines[0].count("|") for line in lines)


def test_a_server_asked_for_whole_answers_is_compared_with_ours_asked_for_the_same(serving):
    whole = run_of(serving.WHOLE, 0, 300.0, ttft=None)
    runs = [run_of(serving.OURS, 0, 100.0), run_of(serving.REFERENCE, 0, 60.0), whole]
    lines = serving.table([*runs, run_of("other", 0, 150.0, ttft=None)], [1]).splitlines()
    assert lines[5].startswith("| other | 1 | 150 (150 to 150) | 2.00 |  |")


def test_a_server_that_does_not_come_up_is_reported_with_its_last_words(serving):
    broken = serving.Engine("broken", (sys.executable, "-c", "raise SystemExit('no such model in /some/where/m')"))
    load = serving.Load(("hello",), 1)
    runs, reasons = serving.measure([broken], load, [1], 2, 1)
    assert (runs, reasons) == ([], {"broken": "ended with status 1: no such model in m"})


def test_a_server_ends_with_its_block_even_when_that_fails(serving, tiny_model_folder):
    engine = serving.engines(serving.arguments(["--model", str(tiny_model_folder)]), 1)[0]
    with contextlib.suppress(ZeroDivisionError), serving.running(engine, 1) as (url, pid):
        assert psutil.pid_exists(pid)
        raise ZeroDivisionError
    assert not psutil.pid_exists(pid)
    assert not port_open("127.0.0.1", int(url.rpartition(":")[2]))


def test_one_small_run_for_real(serving, tmp_path, capsys):
    results = tmp_path / "serving.json"
    words = ("--rounds", 1, "--requests", 2, "--max-tokens", 4, "--threads", 1, "--clients", "1,2")
    serving.main([*map(str, words), "--transformers", "no-such-program", "--results", str(results)])
    held = read_json(results)
    assert [level["concurrency"] for level in held["runs"][0]["levels"]] == [1, 2]
    assert all(level["errors"] == 0 and level["peak_memory_mib"] > 50 for level in held["runs"][0]["levels"])
    assert held["overhead"]["requests"] > 20
    assert {"transformers serve", "llama-server", "llama_cpp.server"} <= set(held["not_measured"])
    assert str(Path.home()) not in results.read_text()
    printed = capsys.readouterr().out
    assert "| labkit serve | 2 | " in printed
    assert "not measured: transformers serve: no no-such-program to run" in printed
    assert "in process" in printed


def test_a_service_that_answers_nothing_has_no_overhead(serving, server):
    with pytest.raises(LabError, match="no request for one token was answered: status 400"):
        serving.overhead(server.base_url, "mini-instruct", ["~" * 500])
