"""The server as a process: how it starts, why it does not, and that it is really gone when it was stopped."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from test_runtimes import labkit
from tiny_server import HELLO, LONG, chat, live, refused, until

from labkit import endpoint
from labkit.errors import LabError
from labkit.evidence import Pack
from labkit.export.onnx import builder_installed
from labkit.layout import ROOT, without_paths
from labkit.serving import contract, process, running, runtimes, shutdown, smoke
from labkit.serving.contract import Refusal, ServerSettings
from labkit.serving.ports import claim_port, free_port, port_open
from labkit.serving.proof import shutdown_proof
from labkit.verification import Verdict, verify


def test_an_open_address_without_a_key_is_refused(monkeypatch):
    monkeypatch.delenv(endpoint.KEY_VARIABLE, raising=False)
    for host in ("0.0.0.0", "::", "192.168.0.7", "example.org"):
        with pytest.raises(LabError, match="no API key is set"):
            runtimes.start_server(host=host, port=free_port())
    for host in ("127.0.0.1", "localhost", "::1"):
        assert process.with_keys(ServerSettings(host=host)).api_keys == ()
    monkeypatch.setenv(endpoint.KEY_VARIABLE, "k")
    assert process.with_keys(ServerSettings(host="0.0.0.0")).api_keys == ("k",)
    assert "'k'" not in repr(process.with_keys(ServerSettings()))


# Servers as processes


def test_smoke_test_of_a_live_server(server):
    proof = smoke.smoke_test(server.base_url + "/v1")
    assert (proof["base_url"], proof["model"], proof["has_choices"]) == (server.base_url, "tiny-llama", True)
    assert proof["health"]["status"] == "ok"
    assert proof["health"]["backend"] == "transformers"
    why = "attention heads are 12 wide" if builder_installed() else "is not installed"  # as in a Colab session
    assert why in proof["health"]["backend_reason"]
    assert proof["first_message"]
    assert proof["usage"]["total_tokens"] == proof["usage"]["prompt_tokens"] + proof["usage"]["completion_tokens"]
    assert proof["revision"] == server.health["revision"]
    assert proof["latency_ms"] > 0
    with pytest.raises(LabError, match="404"):
        smoke.smoke_test(server.base_url, model="other")


def test_smoke_test_without_a_server():
    with pytest.raises(LabError, match="no server answers"):
        smoke.smoke_test(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(LabError, match="not an http"):
        smoke.smoke_test("localhost:8000")


def test_a_taken_port_is_named_before_anything_is_loaded(server, tiny_model_folder):
    with pytest.raises(LabError, match=f"port {server.port} is already in use by a labkit server") as caught:
        runtimes.start_server(str(tiny_model_folder), port=server.port)
    assert f"labkit stop --port {server.port}" in caught.value.next_step
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(LabError, match="already in use by another program"):
            process.serve(ServerSettings(model="never-loaded/x", port=port))
        with pytest.raises(LabError, match="did not start"):
            shutdown.stop_server(port)


def test_keys_come_from_the_variable_and_from_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_API_KEY", "first")
    keys = tmp_path / "keys.txt"
    keys.write_text("second\n\nfirst\n third \n")
    assert process.with_keys(ServerSettings(), str(keys)).api_keys == ("first", "second", "third")
    with pytest.raises(LabError, match=r"key file nothing\.txt cannot be read: No such file"):
        process.with_keys(ServerSettings(), str(tmp_path / "nothing.txt"))
    keys.write_text("\n  \n")
    with pytest.raises(LabError, match=r"key file keys\.txt holds no key"):
        process.with_keys(ServerSettings(), str(keys))
    keys.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LabError, match="not UTF-8"):
        process.with_keys(ServerSettings(), str(keys))


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 0), ("127.0.0.1", 70000), ("203.0.113.9", 8123)])
def test_an_impossible_address_is_named(host, port):
    with pytest.raises(LabError, match=r"is not a port|cannot listen on"):
        claim_port(host, port)


def test_a_wrong_model_path_gives_the_childs_own_reason(tmp_path):
    port = free_port()
    with pytest.raises(LabError, match="no model folder called missing-model") as caught:
        runtimes.start_server(str(tmp_path / "missing-model"), port=port, log=tmp_path / "log")
    assert caught.value.next_step
    assert str(tmp_path) not in str(caught.value)
    assert not port_open("127.0.0.1", port)


def test_the_choice_of_backend_and_revision_reaches_the_child():
    options = runtimes._options(ServerSettings(backend="onnx", dtype="int8", revision="0123"))
    assert {"--backend=onnx", "--dtype=int8", "--revision=0123"} <= set(options)


def test_a_server_that_is_not_healthy_in_time_is_ended(tiny_model_folder, tmp_path):
    port = free_port()
    with pytest.raises(LabError, match=r"not healthy within 0\.2 s"):
        runtimes.start_server(str(tiny_model_folder), port=port, log=tmp_path / "log", timeout=0.2)
    assert not port_open("127.0.0.1", port)


def test_errors_carry_no_folder_of_this_machine():
    text = "no file in /home/ann/models/tiny or C:\\Users\\ann\\tiny; see http://127.0.0.1:8000/v1 and a/b"
    assert without_paths(text) == "no file in tiny or tiny; see http://127.0.0.1:8000/v1 and a/b"


def test_an_answer_that_outlasts_the_drain_is_503(tiny_model):
    answers = []
    with live(tiny_model, LONG, drain=0.2) as url:
        asking = threading.Thread(target=lambda: answers.append(chat(url, max_tokens=3000)))
        asking.start()
        until(lambda: httpx.get(f"{url}/health").json()["running"] == 1)
    asking.join()
    assert refused(answers[0], 503, "server_busy")


def test_stopping_drains_and_proves_it(tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    log, port = tmp_path / "log", free_port()
    handle = runtimes.start_server(str(tiny_model_folder), port=port, device="cpu", limits=LONG, log=log)
    state = running.running_server(port)
    assert (state.pid, state.model, state.limits["queue"]) == (handle.pid, "tiny-llama", 1)
    answers = []
    asking = threading.Thread(target=lambda: answers.append(chat(handle.base_url, max_tokens=800)))
    asking.start()
    until(lambda: answers or httpx.get(f"{handle.base_url}/health").json()["running"] == 1)
    proof = handle.stop(hourly_usd=3600.0)
    asking.join()
    assert answers[0].json()["usage"]["completion_tokens"] == 800
    assert proof["process_gone"] is proof["port_closed"] is True
    assert (proof["pid"], proof["port"], proof["signal"]) == (handle.pid, port, "SIGTERM")
    assert proof["cost_usd"] == proof["seconds"] >= 1
    assert (proof["requests_served"], proof["answers_drained"], proof["answers_cut"]) == (1, 1, 0)
    assert proof["gpu_memory"] == "not visible" or proof["gpu_memory"].endswith("MiB freed")
    assert handle.process.returncode == 0
    assert not running.state_file(port).exists()
    assert not psutil.pid_exists(handle.pid)
    said = log.read_text()
    assert "hello there" not in said
    assert "Traceback" not in said
    with pytest.raises(LabError, match="no labkit server is known"):
        shutdown.stop_server(port)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGSTOP")
def test_a_server_that_does_not_listen_is_killed_by_a_process_that_is_not_its_parent(tiny_model_folder, tmp_path):
    port = free_port()
    with runtimes.start_server(str(tiny_model_folder), port=port, device="cpu", log=tmp_path / "log") as handle:
        psutil.Process(handle.pid).suspend()
        script = (
            "import json, sys; from labkit.serving import runtimes, shutdown; assert 'torch' not in sys.modules;"
            f"print(json.dumps(shutdown.stop_server({port}, grace=0.5)))"
        )
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
        proof = json.loads(done.stdout)
        assert (proof["signal"], proof["process_gone"], proof["port_closed"]) == ("SIGKILL", True, True)


@pytest.fixture(scope="module")
def two_servers(tiny_model_folder, tmp_path_factory):
    """Two server processes, whose starts wait for torch together."""
    folder = tmp_path_factory.mktemp("signalled")
    where = {"port": free_port(), "log": folder / "1.log"}, {"port": free_port(), "log": folder / "2.log"}

    def start(place):
        return runtimes.start_server(str(tiny_model_folder), device="cpu", limits=LONG, **place)

    with ThreadPoolExecutor(2) as two:
        handles = list(two.map(start, where))
    with handles[0], handles[1]:
        yield handles


LONGEST = {"max_tokens": 3000, "logprobs": True, "top_logprobs": 20}


def left(port):
    return json.loads(running.proof_file(port).read_text())


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_a_server_stopped_while_its_model_loads_leaves_a_proof_too(tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "labkit.cli", "serve", "--port", str(port), "--hourly", "3600"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        try:
            until(lambda: port_open("127.0.0.1", port))
            until(lambda: httpx.get(f"http://127.0.0.1:{port}/health", timeout=20).status_code == 503)
            server.send_signal(signal.SIGINT)
            said = server.communicate(timeout=60)[1]
        finally:
            server.kill()  # the end of the block waits for it, for ever where a line above has failed
    proof = left(port)
    assert (proof["signal"], proof["pid"], proof["port_closed"]) == ("SIGINT", server.pid, True), said
    assert (proof["model"], proof["requests_served"]) == ("mini-instruct", 0)
    assert proof["cost_usd"] == proof["seconds"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_ctrl_c_drains_and_leaves_a_proof_that_labkit_stop_completes(two_servers, capsys, tmp_path):
    server, port = two_servers[0], two_servers[0].port
    body = {"messages": HELLO, "max_tokens": 800, "stream": True}
    with httpx.stream("POST", f"{server.base_url}/v1/chat/completions", json=body, timeout=60) as stream:
        lines = stream.iter_lines()
        said = [next(lines)]
        server.process.send_signal(signal.SIGINT)
        said += lines
    assert [line for line in said if line][-1] == "data: [DONE]"
    assert server.process.wait(60) == 0
    assert not running.state_file(port).exists()
    assert "Traceback" not in server.log.read_text()
    proof = left(port)
    assert (proof["signal"], proof["pid"], proof["port_closed"]) == ("SIGINT", server.pid, True)
    assert (proof["requests_served"], proof["answers_drained"], proof["answers_cut"]) == (1, 1, 0)
    assert proof["process_gone"] == proof["gpu_memory"] == "not provable by the process itself"
    assert proof["cost_usd"] == proof["hourly_usd"] == 0
    pack = Pack(tmp_path / "local_cpu", "local_cpu")
    pack.write_json("shutdown_proof.json", proof, "13.4")
    found = next(f for f in verify(pack.folder).artifacts if f.name == "shutdown_proof.json")
    assert (found.verdict, f"labkit stop --port {port}" in found.detail) == (Verdict.NOT_YET, True)
    labkit(capsys, "stop", "--port", port, "--hourly", "3600", "--out", pack.folder, code=0)
    completed = json.loads(pack.path("shutdown_proof.json").read_text())
    assert completed["process_gone"] is completed["port_closed"] is True
    assert completed["cost_usd"] == completed["seconds"] == proof["seconds"]
    assert completed["answers_drained"] == 1
    found = next(f for f in verify(pack.folder).artifacts if f.name == "shutdown_proof.json")
    assert found.verdict is Verdict.SUPPORTED
    with pytest.raises(LabError, match="no labkit server is known"):
        shutdown.stop_server(port)


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process at once")
def test_answers_that_outlast_the_drain_are_cut_told_so_and_counted(two_servers):
    server, port = two_servers[1], two_servers[1].port
    with ThreadPoolExecutor(2) as pool:
        stream = pool.submit(chat, server.base_url, stream=True, **LONGEST)
        until(lambda: httpx.get(f"{server.base_url}/health").json()["running"] == 1)
        whole = pool.submit(chat, server.base_url, **LONGEST)
        until(lambda: httpx.get(f"{server.base_url}/health").json()["waiting"] == 1)
        asked_at = time.monotonic()
        server.process.terminate()
        assert server.process.wait(60) == 0
    assert time.monotonic() - asked_at > process.DRAIN_SECONDS - 1
    assert refused(whole.result(), 503, "server_busy")
    drained = "data: [DONE]" in stream.result().text
    if not drained:
        [said] = [line for line in stream.result().text.splitlines() if '"error"' in line]
        assert json.loads(said.removeprefix("data: "))["error"]["message"] == "the server is shutting down"
    proof = left(port)
    assert (proof["signal"], proof["port_closed"]) == ("SIGTERM", True)
    assert (proof["answers_drained"], proof["answers_cut"]) == ((1, 1) if drained else (0, 2))
    assert "Traceback" not in server.log.read_text()
    assert shutdown.stop_server(port)["process_gone"] is True


def test_a_proof_that_cannot_be_written_or_paid_is_named_before_anything_starts_or_ends(tmp_path):
    for words in ({"proof": tmp_path}, {"proof": tmp_path / "none" / "proof.json"}):
        with pytest.raises(LabError, match="cannot be written there"):
            process.serve(ServerSettings(model="never-loaded/x", port=free_port()), **words)
    for price in (-1.0, float("nan"), float("inf")):
        with pytest.raises(LabError, match="is not a price"):
            process.serve(ServerSettings(model="never-loaded/x", port=free_port()), hourly_usd=price)
        with pytest.raises(LabError, match="is not a price"):
            shutdown.stop_server(free_port(), price)


def test_a_proof_is_not_completed_while_the_process_is_there(monkeypatch, tmp_path):
    monkeypatch.setattr(running, "STATE", tmp_path)
    monkeypatch.setattr(shutdown, "EXIT_SECONDS", 0.1)
    mine = psutil.Process()
    facts = {"pid": mine.pid, "model": "m", "started": "2026-01-05T10:00:00+00:00", "create_time": mine.create_time()}
    running.leave_proof(shutdown_proof(port=9, signal="SIGINT", port_closed=True, **facts), tmp_path / "copy.json")
    with pytest.raises(LabError, match=f"its process {mine.pid} is still there"):
        shutdown.stop_server(9)
    assert (tmp_path / "copy.json").read_text() == running.proof_file(9).read_text()
    for broken, said in (("{", "not readable JSON"), ('{"pid": 1}', "does not say hourly_usd, process_gone, seconds")):
        running.proof_file(9).write_text(broken)
        with pytest.raises(LabError, match=said):
            shutdown.stop_server(9)


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a shell script")
def test_gpu_memory_is_what_nvidia_smi_says(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutdown.gpu_memory_mib() is None
    program = tmp_path / "nvidia-smi"
    for said, understood in (("400\n12", 412), ("[N/A]", None)):
        program.write_text(f"#!/bin/sh\necho '{said}'\n")
        program.chmod(0o755)
        assert shutdown.gpu_memory_mib() == understood
    assert shutdown.memory_freed(412, 12) == "400 MiB freed"
    assert shutdown.memory_freed(None, 12) == "not visible"


def test_a_state_file_of_a_process_that_is_gone_stops_nobody(server, monkeypatch, tmp_path):
    monkeypatch.setattr(running, "STATE", tmp_path)
    state = json.loads((runtimes.STATE / f"server-{server.port}.json").read_text())
    assert state["backend"] == "transformers"
    stranger = {**state, "create_time": state["create_time"] - 100, "port": 9}
    (tmp_path / "server-9.json").write_text(json.dumps(stranger))
    with pytest.raises(LabError, match="already ended"):
        shutdown.stop_server(9)
    assert psutil.pid_exists(server.pid)
    (tmp_path / "server-9.json").write_text("{")
    with pytest.raises(LabError, match="not readable JSON"):
        shutdown.stop_server(9)


def test_every_refusal_has_openais_shape():
    for code, (status, kind, meaning) in contract.ERRORS.items():
        refusal = Refusal(code, "what", "field")
        assert refusal.status_code == status
        assert refusal.body() == {"error": {"message": "what", "type": kind, "param": "field", "code": code}}
        assert meaning


@pytest.mark.skipif(os.name == "nt", reason="Windows reserves no port")
def test_a_free_port_is_given_to_nobody_else_before_its_server_starts():
    port = free_port()
    assert not port_open("127.0.0.1", port)
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    claim_port("127.0.0.1", port).close()


def test_the_servers_socket_names_its_protocol():
    """Without it asyncio leaves Nagle's algorithm on, and every whole answer waits for the client's delayed ACK."""
    with claim_port("127.0.0.1", free_port()) as listener:
        assert listener.proto == socket.IPPROTO_TCP
