"""Engines that are not ours: the exact command of each, what is refused, and one that is really started and stopped."""

import dataclasses
import io
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest
from rich.console import Console
from tiny_server import until

from labkit.benchmark import benchmark
from labkit.cli import main
from labkit.endpoint import KEY_VARIABLE
from labkit.errors import LabError
from labkit.evidence import read_json
from labkit.landscape import runtimes as landscape
from labkit.layout import MODELS
from labkit.report.landscape import print_runtimes
from labkit.serving import engines, ports, running, runtimes, shutdown, smoke
from labkit.serving.engines import EngineSettings, find_engine, load_engines, plan_launch
from labkit.serving.ports import free_port

TOY = Path(__file__).with_name("toy_engine.py")
STARTABLE = [engine for engine in load_engines() if engine.kind != engines.REMOTE]
CAN_ASK_FOR_A_KEY = ("vLLM", "llama-server", "llama_cpp.server")
posix = pytest.mark.skipif(os.name == "nt", reason="the engine is a script with a #! line, and is sent signals")


@pytest.fixture(autouse=True)
def _no_key(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


def command(name, **settings):
    launch = plan_launch(find_engine(name), EngineSettings(**settings))
    return launch.command(launch.argv), launch.command(launch.then) if launch.then else ""


# Commands

GOLDEN = {
    "vLLM": "vllm serve org/model --served-model-name org/model --host 127.0.0.1 --port 8000 --max-model-len 4096"
    " --gpu-memory-utilization 0.85",
    "SGLang": "python -m sglang.launch_server --model-path org/model --served-model-name org/model --host 127.0.0.1"
    " --port 30000 --context-length 4096 --mem-fraction-static 0.85",
    "llama-server": "llama-server --model org/model --alias org/model --host 127.0.0.1 --port 8080 --ctx-size 4096",
    "llama_cpp.server": "python -m llama_cpp.server --model org/model --model_alias org/model --host 127.0.0.1"
    " --port 8000 --n_ctx 4096 --interrupt_requests false",
    "transformers serve": "transformers serve org/model --host 127.0.0.1 --port 8000 --continuous-batching"
    " --cb-max-memory-percent 0.1",
    "Ollama": "OLLAMA_HOST=127.0.0.1:11434 OLLAMA_CONTEXT_LENGTH=4096 ollama serve",
    "LM Studio": "lms server start --port 1234 --bind 127.0.0.1",
    "Foundry Local (0.10 preview)": "foundry server start --port 5273",
    "Foundry Local (old CLI)": "foundry service start",
}
THEN = {
    "Ollama": "OLLAMA_HOST=127.0.0.1:11434 OLLAMA_CONTEXT_LENGTH=4096 ollama pull org/model",
    "LM Studio": "lms load org/model --context-length 4096",
    "Foundry Local (0.10 preview)": "foundry model load org/model",
    "Foundry Local (old CLI)": "foundry model run org/model",
}


@pytest.mark.parametrize("engine", STARTABLE, ids=lambda engine: engine.name)
def test_the_command_of_every_engine(engine):
    assert command(engine.name, model="org/model") == (GOLDEN[engine.name], THEN.get(engine.name, ""))


def test_settings_reach_the_command():
    said, _ = command("vllm", model="m/x", host="::1", port=9, max_model_len=512, memory_share=0.5)
    assert said.endswith("--host ::1 --port 9 --max-model-len 512 --gpu-memory-utilization 0.5")
    assert command("ollama", model="m", host="::1", port=9, max_model_len=512)[0].startswith(
        "OLLAMA_HOST='[::1]:9' OLLAMA_CONTEXT_LENGTH=512 "
    )


def test_a_path_with_a_space_stays_one_word(tmp_path):
    file = tmp_path / "my models" / "it's {a} $model.gguf"
    file.parent.mkdir()
    file.write_bytes(b"GGUF")
    launch = plan_launch(find_engine("llama-server"), EngineSettings(str(file)))
    assert launch.argv[1:5] == ("--model", str(file), "--alias", file.name)
    assert shlex.split(launch.command(launch.argv)) == list(launch.argv)
    assert launch.model == file.name


def test_an_engine_that_names_a_model_by_its_path_starts_beside_it():
    launch = plan_launch(find_engine("transformers-serve"), EngineSettings("mini-instruct"))
    assert (launch.model, launch.folder, launch.argv[2]) == ("mini-instruct", MODELS, "mini-instruct")
    assert launch.command(launch.argv).startswith(f"cd {shlex.quote(str(MODELS))} && transformers serve mini-instruct ")
    assert plan_launch(find_engine("vllm"), EngineSettings("mini-instruct")).argv[2] == str(MODELS / "mini-instruct")


def test_an_unknown_name_lists_the_others():
    with pytest.raises(LabError, match="no runtime is called 'vvlm'") as caught:
        find_engine("vvlm")
    for name in ("labkit", *GOLDEN):
        assert name in caught.value.next_step


# Several GPUs and machines


VLLM_TWO = f"{GOLDEN['vLLM']} --tensor-parallel-size 2"
SGLANG_FOUR = f"{GOLDEN['SGLang']} --tp-size 4 --nnodes 2 --node-rank 0 --dist-init-addr 10.0.0.7:20000"
ACROSS = ("--machines", "2", "--first-machine", "10.0.0.7")


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        (("vllm", "--tensor-parallel-size", "2"), [VLLM_TWO]),
        (("sglang", "--tensor-parallel-size", "2"), [f"{GOLDEN['SGLang']} --tp-size 2"]),
        (
            ("vllm", "--tensor-parallel-size", "2", "--pipeline-parallel-size", "2", *ACROSS),
            [
                f"{VLLM_TWO} --pipeline-parallel-size 2 --distributed-executor-backend ray",
                "before, on this machine: ray start --head --port 6379",
                "before, on every other machine: ray start --address 10.0.0.7:6379",
            ],
        ),
        (
            ("sglang", "--tensor-parallel-size", "4", *ACROSS),
            [SGLANG_FOUR, "on machine 1: " + SGLANG_FOUR.replace("rank 0", "rank 1")],
        ),
    ],
)
def test_a_model_on_several_gpus(capsys, options, lines):
    said = labkit(capsys, "serve", "--model", "org/model", "--dry-run", "--runtime", *options, code=0).splitlines()
    assert said[: len(lines)] == lines
    assert said[len(lines)].startswith("API key: ")
    assert any("need `pip install ray` on each" in line for line in said) == (options[0] == "vllm")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("vllm", "--tensor-parallel-size", "0"), "0 is no number of GPUs"),
        (("vllm", "--machines", "2"), "several machines and the address of the first belong together"),
        (("vllm", "--tensor-parallel-size", "3", *ACROSS), "3 GPUs do not spread evenly over 2 machines"),
        (("llama-server", "--tensor-parallel-size", "2"), "llama-server has no options for several GPUs"),
        (("labkit", "--tensor-parallel-size", "2"), "--tensor-parallel-size needs another --runtime"),
    ],
)
def test_what_cannot_be_spread_is_refused(capsys, options, said):
    runtime, *rest = options
    words = ["serve", "--model", "org/model", *(["--dry-run"] if runtime != "labkit" else []), "--runtime", runtime]
    assert said in labkit(capsys, *words, *rest, code=2)


# Keys and refusals


@pytest.mark.parametrize("engine", STARTABLE, ids=lambda engine: engine.name)
def test_a_host_that_others_reach_needs_an_engine_that_asks_for_a_key(engine, monkeypatch):
    for host in ("0.0.0.0", "192.168.0.7"):
        with pytest.raises(LabError, match=r"no API key is set|has no option for --host"):
            plan_launch(engine, EngineSettings("m", host=host))
    monkeypatch.setenv(KEY_VARIABLE, "s3cret")
    if engine.name not in CAN_ASK_FOR_A_KEY:
        with pytest.raises(LabError, match=r"takes no key from its environment|has no option for --host"):
            plan_launch(engine, EngineSettings("m", host="0.0.0.0"))
        return
    launch = plan_launch(engine, EngineSettings("m", host="0.0.0.0"))
    assert launch.command(launch.argv).startswith(f'{engine.key_variable}="$LABKIT_API_KEY" ')
    assert launch.child_environment()[engine.key_variable] == "s3cret"
    assert "s3cret" not in launch.as_text() + repr(launch)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("transformers serve", {"max_model_len": 4096}, "no option for --max-model-len"),
        ("llama-server", {"memory_share": 0.5}, "no option for --memory-share"),
        ("Foundry Local (old CLI)", {"port": 9}, "no option for --port"),
        ("vLLM", {"max_model_len": 0}, "0 tokens is too short"),
        ("vLLM", {"port": 99_999}, "99999 is not a port"),
        ("vLLM", {"memory_share": 1.5}, r"1\.5 is not a share"),
        ("vLLM", {"model": "--trust-remote-code"}, "is not a model"),
        ("vLLM", {"model": " "}, "is not a model"),
        ("Mistral", {}, "Mistral runs elsewhere"),
    ],
)
def test_what_an_engine_cannot_honour_is_refused(name, settings, said):
    with pytest.raises(LabError, match=said) as caught:
        plan_launch(find_engine(name), EngineSettings(**{"model": "m", **settings}))
    assert caught.value.next_step


def labkit(capsys, *words, code=2):
    """What the command prints, run in this process; `code` 2 is a refusal."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["labkit", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
    assert stopped.value.code == code
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return said.err if code else said.out


def test_dry_run_prints_the_command_and_what_to_know(capsys, monkeypatch):
    said = labkit(capsys, "serve", "--runtime", "vllm", "--model", "org/model", "--dry-run", code=0).splitlines()
    assert said[0] == GOLDEN["vLLM"]
    assert said[1] == "API key: none: set LABKIT_API_KEY to ask for one"
    assert said[2] == "needs: pip install vllm; an NVIDIA GPU"
    assert said[-1] == "vLLM: not run here; official, seen 2026-11-21"
    monkeypatch.setenv(KEY_VARIABLE, "s3cret")
    said = labkit(capsys, "serve", "--runtime", "vllm", "--model", "m/x", "--port", "9", "--dry-run", code=0)
    assert said.startswith('VLLM_API_KEY="$LABKIT_API_KEY" vllm serve m/x ')
    assert "--port 9 " in said
    assert "s3cret" not in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--runtime", "vvlm"), "no runtime is called 'vvlm'"),
        (("--runtime", "vllm", "--queue", "3", "--device", "cpu"), "--device, --queue is for the runtime labkit"),
        (("--dry-run",), "--dry-run needs another --runtime"),
        (("--runtime", "vllm", "--host", "0.0.0.0", "--dry-run"), "no API key is set"),
        (("--runtime", "lm-studio"), "LM Studio leaves a server of its own behind"),
        (("--runtime", "deepseek"), "DeepSeek runs elsewhere"),
    ],
)
def test_serve_names_what_is_wrong(capsys, words, said):
    printed = labkit(capsys, "serve", *words)
    assert said in printed
    assert "next: " in printed


# The table


def test_every_row_is_filled_and_says_where_it_is_from():
    for engine in load_engines():
        assert engine.kind in (engines.PROCESS, engines.SERVICE, engines.REMOTE)
        assert engine.tried in ("run here", "not run here")
        assert engine.seen
        assert all(source.startswith("https://") for source in engine.sources)
        assert "0.0.0.0" not in engine.start
        if engine.kind == engines.REMOTE:
            assert engine.base_url.startswith("https://")
            assert engine.key_variable
            assert not engine.start
        else:
            assert engine.health.startswith("/")
            assert engine.install
    tried = {row.runtime: row.checked for row in landscape.load_runtimes()}
    for engine in STARTABLE:
        if engine.name in tried:
            assert tried[engine.name].startswith("run by") == (engine.tried == "run here")


def test_the_table_reads_well_in_100_columns():
    console = Console(width=100, file=io.StringIO())
    print_runtimes(load_engines(), console)
    said = console.file.getvalue()
    assert max(map(len, said.splitlines())) <= 100
    for engine in load_engines():
        for words in (engine.name, engine.base_url, engine.key_variable, engine.tried, engine.health):
            assert words in said
    assert "verify" in said
    assert 'LABKIT_API_KEY="$MISTRAL_API_KEY"' in said
    assert "…" not in said


# A real engine, started, asked, stopped


@pytest.fixture
def toy(tmp_path):
    """toy_engine.py as an executable in a folder with a space, and its row of the table."""
    program = tmp_path / "my engines" / "toy"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n{TOY.read_text()}")
    program.chmod(0o755)
    options = "--model {model} --host {host} --port {port} --length {max_model_len}"
    return dataclasses.replace(
        find_engine("vLLM"),
        name="Toy",
        start=f"{shlex.quote(str(program))} {options}",
        key_variable="TOY_KEY",
        health="/ready",
        install="write it",
    )


def launch_toy(toy, model="toy-model", **settings):
    return plan_launch(toy, EngineSettings(model, port=free_port(), **settings))


@posix
def test_an_engine_is_started_asked_and_stopped(toy, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "s3cret")
    launch = launch_toy(toy)
    handle = runtimes.start_engine(launch, log=tmp_path / "log", timeout=30)
    state = running.running_server(launch.port)
    assert (state.pid, state.model, state.limits["max_model_len"]) == (handle.pid, "toy-model", 4096)
    assert handle.health["pid"] == handle.pid
    assert running.recorded_model(f"{handle.base_url}/v1") == "toy-model"
    assert running.recorded_model("https://example.org:8000") is None
    assert smoke.smoke_test(handle.base_url, "toy-model")["first_message"] == "Hello there"
    assert benchmark(handle.base_url, ["Hello"], 2, model="toy-model")["levels"][0]["completion_tokens"] == 4
    assert all("s3cret" not in word for word in psutil.Process(handle.pid).cmdline())
    monkeypatch.setenv(KEY_VARIABLE, "wrong")
    with pytest.raises(LabError, match="refused with 401"):
        smoke.smoke_test(handle.base_url, "toy-model")
    proof = shutdown.stop_server(launch.port)
    assert proof["process_gone"] is proof["port_closed"] is True
    assert (proof["model"], proof["signal"]) == ("toy-model", "SIGTERM")
    assert not psutil.pid_exists(handle.health["child"])
    assert not running.state_file(launch.port).exists()


@posix
def test_a_crash_at_the_start_tells_the_engines_last_words(toy, tmp_path):
    launch = launch_toy(toy, "broken")
    with pytest.raises(LabError, match="code 1; its last words: cannot read the weights in broken"):
        runtimes.start_engine(launch, log=tmp_path / "log", timeout=30)
    assert not ports.port_open("127.0.0.1", launch.port)


@posix
@pytest.mark.parametrize("change", [{"health": "/v1/nothing"}, {"then": "false"}])
def test_an_engine_that_does_not_get_ready_is_ended(toy, tmp_path, change):
    launch = launch_toy(dataclasses.replace(toy, **change))
    with pytest.raises(LabError, match=r"not healthy within 3 s|`false` ended with code 1"):
        runtimes.start_engine(launch, log=tmp_path / "log", timeout=3)
    assert not ports.port_open("127.0.0.1", launch.port)
    assert not running.state_file(launch.port).exists()


def test_a_program_that_is_missing_is_named_with_its_installation(toy):
    for start in ("no-such-engine {port}", "python -m no_such_engine.server {port}"):
        missing = launch_toy(dataclasses.replace(toy, start=f"{start} {{model}} {{host}} {{max_model_len}}"))
        with pytest.raises(LabError, match="Toy is not installed here") as caught:
            runtimes.start_engine(missing)
        assert "write it" in caught.value.next_step


def foreground(toy, table, *words, **environment):
    """`labkit serve` as a person runs it, with `toy` as the only row of its table."""
    columns = [field.name for field in dataclasses.fields(toy)]
    values = ["|".join(toy.sources) if name == "sources" else _cell(getattr(toy, name)) for name in columns]
    table.write_text("\n".join(",".join(f'"{cell}"' for cell in row) for row in (columns, values)), encoding="utf-8")
    script = (
        "import sys, pathlib; from labkit.serving import engines; from labkit.cli import main;"
        "engines.load_engines.__defaults__ = (pathlib.Path(sys.argv.pop(1)),); main()"
    )
    argv = [sys.executable, "-c", script, str(table), "serve", *map(str, words)]
    return subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a test run in the background ignores it
    )


def _cell(value):
    return {None: "", True: "yes", False: "no"}.get(value, str(value))


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, None])
def test_the_foreground_ends_with_the_engine(toy, tmp_path, capsys, number):
    port, pack = free_port(), tmp_path / "pack"
    url = f"http://127.0.0.1:{port}"
    words = ("--runtime", "toy", "--model", "toy-model", "--port", port, "--proof", tmp_path / "copy.json")
    with foreground(toy, tmp_path / "t.csv", *words, "--hourly", "3600") as server:
        try:
            assert server.stdout.readline() == f"serving toy-model with Toy at {url}  (Ctrl+C stops it)\n"
            health = httpx.get(f"{url}/ready").json()
            labkit(capsys, "smoke", "--base-url", url, "--out", pack, code=0)
            assert read_json(pack / "api_smoke_test.json")["model"] == "toy-model"
            assert "refused with 404" in labkit(capsys, "smoke", "--base-url", url, "--model", "none", "--out", pack)
            if number is None:
                labkit(capsys, "bench", "--base-url", url, "--requests", "2", "--out", pack, code=0)
                labkit(capsys, "eval", "--base-url", url, "--out", pack, code=0)
                for name in ("benchmark.json", "eval_summary.json"):
                    assert read_json(pack / name)["model"] == "toy-model"
                labkit(capsys, "stop", "--port", port, "--out", pack, code=0)
                assert read_json(pack / "shutdown_proof.json")["process_gone"]
            else:
                server.send_signal(number)
            assert server.wait(20) == 0
            assert "stopped" in server.stderr.read()
        finally:
            server.kill()
    if number is not None:
        left = read_json(tmp_path / "copy.json")
        assert (left["pid"], left["signal"], left["received"]) == (health["pid"], "SIGTERM", number.name)
        assert left["process_gone"] is left["port_closed"] is True
        assert left["cost_usd"] == left["seconds"]
        labkit(capsys, "stop", "--port", port, "--out", pack, code=0)
        assert read_json(pack / "shutdown_proof.json")["received"] == number.name
    assert not running.proof_file(port).exists()
    assert not psutil.pid_exists(health["pid"])
    assert not psutil.pid_exists(health["child"])
    assert not running.state_file(port).exists()


@posix
def test_an_engine_that_ends_by_itself_is_an_error_with_its_last_words(toy, tmp_path):
    port = free_port()
    with foreground(toy, tmp_path / "t.csv", "--runtime", "toy", "--model", "toy-model", "--port", port) as server:
        try:
            assert "serving toy-model" in server.stdout.readline()
            child = httpx.get(f"http://127.0.0.1:{port}/ready").json()["child"]
            with pytest.raises(httpx.HTTPError):
                httpx.post(f"http://127.0.0.1:{port}/die", json={})
            assert server.wait(20) == 2
            said = server.stderr.read()
        finally:
            server.kill()
    assert "Toy ended by itself with code 7; its last words: " in said
    assert "out of toy memory" in said
    until(lambda: not psutil.pid_exists(child))
    assert "Traceback" not in said
    assert not running.state_file(port).exists()


@posix
def test_transformers_serve_is_started_asked_and_stopped(tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    launch = plan_launch(find_engine("transformers serve"), EngineSettings(str(tiny_model_folder), port=free_port()))
    with runtimes.start_engine(launch, log=tmp_path / "log", timeout=120) as handle:
        assert httpx.get(f"{handle.base_url}/v1/models").status_code == 200
        proof = smoke.smoke_test(handle.base_url, handle.model)
        assert proof["first_message"]
        assert (proof["model"], proof["revision"]) == (handle.model, "main")
        assert str(tmp_path) not in json.dumps(proof)
        proof = handle.stop()
    assert proof["process_gone"] is proof["port_closed"] is True
    assert handle.process.returncode in runtimes.STOPPED
    until(lambda: not ports.port_open("127.0.0.1", launch.port))
