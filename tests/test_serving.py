"""The server keeps its contract: what it answers, what it refuses and how, and that it is really gone when stopped."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace

import httpx
import openai
import psutil
import pytest
import torch
import uvicorn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from labkit import generation
from labkit.errors import LabError
from labkit.layout import ROOT
from labkit.serving import contract, process, runtimes, shutdown, smoke
from labkit.serving.app import create_app
from labkit.serving.contract import Limits, Refusal, ServerSettings

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMALL = Limits(80, 40, 4096, 30, concurrency=1, queue=1)
LONG = Limits(80, 3000, 4096, 60, concurrency=1, queue=1)
HELLO = [{"role": "user", "content": "hello there"}]
ERROR_FIELDS = {"message", "type", "param", "code"}


def make_tiny_model(folder):
    """A random Llama of 0.1 M parameters with an ASCII tokenizer, which never ends an answer by itself."""
    special = ["<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = ["hello there user system assistant", "".join(map(chr, range(32, 127))) + "\n"]
    tokenizer.train_from_iterator(text * 3, trainers.BpeTrainer(vocab_size=160, special_tokens=special))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=CHATML)
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=4096,
        eos_token_id=1,
        bos_token_id=0,
    )
    network = LlamaForCausalLM(config)
    with torch.no_grad():
        network.lm_head.weight[:2] = 0
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny_model(tiny_model_folder):
    torch.set_num_threads(1)  # a matrix this small is slower on two
    return generation.load_chat_model(str(tiny_model_folder), device="cpu")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def live(model, limits=SMALL, drain=None, **settings):
    """A real uvicorn server around `model` in a thread of this process: its base URL."""
    settings = ServerSettings(port=free_port(), limits=limits, **settings)
    app, quiet = create_app(model, settings), {"log_level": "critical"}
    server = uvicorn.Server(uvicorn.Config(app, port=settings.port, timeout_graceful_shutdown=drain, **quiet))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield settings.base_url
    finally:
        server.should_exit = True
        thread.join(20)


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def url(tiny_model):
    with live(tiny_model) as base_url:
        yield base_url


@pytest.fixture(scope="module")
def long_url(tiny_model):
    with live(tiny_model, LONG) as base_url:
        yield base_url


@pytest.fixture(scope="module")
def server(tiny_model_folder, tmp_path_factory):
    """`labkit serve` as a process, as learners run it."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    with runtimes.start_server(str(tiny_model_folder), port=free_port(), device="cpu", limits=SMALL, log=log) as handle:
        yield handle


def chat(url, **body):
    return httpx.post(f"{url}/v1/chat/completions", json={"messages": HELLO, **body}, timeout=60)


def refused(response, status, code, param=None):
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param), response.text
    assert set(error) == ERROR_FIELDS
    assert "Traceback" not in response.text
    assert contract.ERRORS[code][0] == status
    return error["message"]


def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


# What clients see


def test_the_learners_client(server):
    with urllib.request.urlopen(f"{server.base_url}/health") as response:
        health = json.load(response)
    assert (health["status"], health["model"], health["device"]) == ("ok", "tiny-llama", "cpu")
    body = json.dumps({"messages": HELLO, "max_tokens": 8}).encode()
    request = urllib.request.Request(
        f"{server.base_url}/v1/chat/completions", data=body, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:
        answer = json.load(response)
    assert answer["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens"] == 8


def test_openai_client_plain_and_streaming_agree(url, tiny_model):
    plain = client(url).chat.completions.create(model="tiny-llama", messages=HELLO, max_tokens=20, temperature=0)
    assert plain.usage.prompt_tokens == tiny_model.count_tokens(HELLO)
    assert plain.usage.total_tokens == plain.usage.prompt_tokens + 20
    assert plain.choices[0].finish_reason == "length"
    assert plain.system_fingerprint == tiny_model.revision
    chunks = list(
        client(url).chat.completions.create(
            model="tiny-llama", messages=HELLO, max_tokens=20, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == plain.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks[-2:-1]] == ["length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == plain.usage
    assert all(c.usage is None for c in chunks[:-1])


def test_stream_ends_with_done_and_gives_usage_only_when_asked(url):
    lines = [line for line in chat(url, stream=True, max_tokens=4).text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    assert not any("usage" in json.loads(line[6:]) for line in lines[:-1])


def test_models_are_listed(url):
    assert [card.id for card in client(url).models.list()] == ["tiny-llama"]
    assert client(url).models.retrieve("tiny-llama").id == "tiny-llama"
    refused(httpx.get(f"{url}/v1/models/other"), 404, "model_not_found")


@pytest.mark.parametrize("stream", [False, True])
def test_stop_text_never_leaks(url, stream):
    whole = chat(url, max_tokens=30).json()["choices"][0]["message"]["content"]
    stop = whole[7:12]
    before = whole[: whole.index(stop)]
    response = chat(url, max_tokens=30, stop=[stop, "never said"], stream=stream)
    if stream:
        choices = [json.loads(line[6:])["choices"][0] for line in response.text.split("\n\n")[:-2]]
        text, reason = "".join(c["delta"].get("content", "") for c in choices), choices[-1]["finish_reason"]
    else:
        choice = response.json()["choices"][0]
        text, reason = choice["message"]["content"], choice["finish_reason"]
    assert (text, reason) == (before, "stop")


def test_seed_decides_a_sampled_answer(url):
    def text(**sampling):
        return chat(url, temperature=1.5, max_tokens=20, **sampling).json()["choices"][0]["message"]["content"]

    assert text(seed=3) == text(seed=3)
    assert text(seed=3) != text(seed=4)
    assert text() != text()


def test_parameters_at_their_only_value_and_nulls_are_accepted(url):
    neutral = {"n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logprobs": False, "stop": None, "seed": None}
    developer = [{"role": "developer", "content": "be brief"}, *HELLO]
    response = chat(url, messages=developer, temperature=1e-300, max_completion_tokens=2, **neutral)
    assert response.status_code == 200
    assert response.json()["usage"]["completion_tokens"] == 2


# What the server refuses

BAD_VALUES = [
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, "messages.0.content"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": "8"}, "max_tokens"),
    ({"max_tokens": 4, "max_completion_tokens": 5}, "max_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"top_p": 1.1}, "top_p"),
    ({"seed": 2**64}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"stop": 3}, "stop"),
    ({"n": 2}, "n"),
    ({"logprobs": True}, "logprobs"),
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
]
NOT_HONOURED = [
    ({"tools": []}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"temprature": 1}, "temprature"),
    ({"messages": [{"role": "user", "content": "x", "name": "Ann"}]}, "messages.0.name"),
]


@pytest.mark.parametrize(("body", "param"), BAD_VALUES)
def test_bad_values_are_refused(url, body, param):
    refused(chat(url, **body), 400, "invalid_value", param)


@pytest.mark.parametrize(("body", "param"), NOT_HONOURED)
def test_parameters_that_are_not_honoured_are_refused(url, body, param):
    refused(chat(url, **body), 400, "unsupported_parameter", param)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 3000, b'{"\\ud800": 1}'])
def test_malformed_json_is_refused(url, body):
    headers = {"Content-Type": "application/json"}
    refused(httpx.post(f"{url}/v1/chat/completions", content=body, headers=headers), 400, "invalid_json")


def test_wrong_places_are_refused(url):
    refused(httpx.get(f"{url}/nothing/here"), 404, "not_found")
    refused(httpx.get(f"{url}/v1/chat/completions"), 405, "method_not_allowed")
    refused(httpx.post(f"{url}/v1/chat/completions", content=b"{}"), 415, "unsupported_media_type")
    refused(chat(url, model="gpt-4"), 404, "model_not_found", "model")
    response = chat(url, messages=None)
    refused(response, 400, "invalid_value", "messages")


def test_a_template_that_refuses_the_roles_is_the_clients_error(tiny_model, monkeypatch):
    monkeypatch.setattr(tiny_model.tokenizer, "chat_template", "{{ raise_exception('roles must alternate') }}")
    with live(tiny_model) as url:
        assert "roles must alternate" in refused(chat(url), 400, "invalid_value", "messages")


def test_a_failing_model_is_one_500_with_an_id_and_the_server_goes_on(tiny_model, monkeypatch, caplog):
    def broken(messages, sampling):
        raise RuntimeError(f"cannot answer {messages}")

    with live(tiny_model) as url:
        with monkeypatch.context() as patch:
            patch.setattr(tiny_model, "stream", broken)
            message = refused(chat(url), 500, "internal_error")
            assert "internal_error" in chat(url, stream=True).text
        assert chat(url, max_tokens=2).status_code == 200
    assert message.split()[-1] in caplog.text
    assert "RuntimeError" in caplog.text
    assert HELLO[0]["content"] not in caplog.text


# The limits of the contract, broken one by one


def test_the_contract_document_is_what_the_server_enforces(url, tiny_model):
    document = httpx.get(f"{url}/contract").json()
    limits = document["limits"]
    assert limits == {f: getattr(SMALL, f) for f in limits}
    assert set(document["request"]) == set(contract.ChatRequest.model_fields)
    assert set(document["errors"]) == {str(status) for status, _, _ in contract.ERRORS.values()}
    assert document["stop"]["command"].endswith(url.rsplit(":", 1)[1])
    assert (document["model"], document["revision"]) == ("tiny-llama", tiny_model.revision)

    most = limits["max_output_tokens"]
    assert chat(url, max_tokens=most).status_code == 200
    assert chat(url).json()["usage"]["completion_tokens"] == most
    refused(chat(url, max_tokens=most + 1), 400, "invalid_value", "max_tokens")

    def prompt(tokens):
        spare = tokens - tiny_model.count_tokens([{"role": "user", "content": ""}])
        return [{"role": "user", "content": "~" * spare}]

    fits = prompt(limits["max_input_tokens"])
    assert tiny_model.count_tokens(fits) == limits["max_input_tokens"]
    assert chat(url, messages=fits, max_tokens=1).status_code == 200
    over = prompt(limits["max_input_tokens"] + 1)
    refused(chat(url, messages=over), 400, "context_length_exceeded", "messages")
    refused(chat(url, messages=over, stream=True), 400, "context_length_exceeded", "messages")

    for size in (limits["max_body_bytes"] + 1, 3_000_000):
        refused(chat(url, messages=[{"role": "user", "content": "a" * size}]), 413, "body_too_large")
    headers = {"Content-Type": "application/json"}
    chunked = httpx.post(f"{url}/v1/chat/completions", content=(b"a" * 1000 for _ in range(50)), headers=headers)
    refused(chunked, 413, "body_too_large")


def test_limits_never_exceed_the_models_context(tiny_model):
    app = create_app(tiny_model, ServerSettings(limits=Limits(10**6, 10**6)))
    assert app.state.settings.limits.max_input_tokens == tiny_model.context_length - 1
    with live(tiny_model, Limits(4000, 4000, 10**6)) as url:
        refused(chat(url, max_tokens=4000, messages=HELLO * 20), 400, "context_length_exceeded", "messages")


def test_a_full_server_refuses_with_503_and_frees_what_leaves(long_url):
    def load():
        health = httpx.get(f"{long_url}/health").json()
        return health["running"], health["waiting"]

    def ask(stream):
        connection = http.client.HTTPConnection(long_url.removeprefix("http://"))
        body = json.dumps({"messages": HELLO, "max_tokens": 3000, "stream": stream})
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        return connection

    plain = ask(stream=False)
    until(lambda: load() == (1, 0))
    streaming = ask(stream=True)
    until(lambda: load() == (1, 1))
    full = chat(long_url, max_tokens=1)
    refused(full, 503, "server_busy")
    assert full.headers["Retry-After"] == "1"
    started = time.monotonic()
    plain.close()
    until(lambda: load() == (1, 0))
    streaming.getresponse().read(100)
    streaming.close()
    until(lambda: load() == (0, 0))
    assert time.monotonic() - started < 2
    assert chat(long_url, max_tokens=1).status_code == 200


def test_an_answer_that_takes_too_long_is_504(tiny_model):
    with live(tiny_model, replace(LONG, request_seconds=0.2)) as url:
        refused(chat(url, max_tokens=3000), 504, "request_timeout")
        stream = chat(url, max_tokens=3000, stream=True).text
        assert json.loads(stream.split("\n\n")[-2][6:])["error"]["code"] == "request_timeout"
        assert "[DONE]" not in stream
        until(lambda: httpx.get(f"{url}/health").json()["running"] == 0)


def test_a_body_that_never_comes_is_408(tiny_model):
    with live(tiny_model, replace(SMALL, request_seconds=0.2)) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"))
        connection.putrequest("POST", "/v1/chat/completions")
        connection.putheader("Content-Length", "100")
        connection.endheaders()
        assert connection.getresponse().status == 408


@pytest.mark.parametrize("limits", [{"concurrency": 0}, {"max_body_bytes": -1}, {"request_seconds": float("nan")}])
def test_senseless_limits_are_refused(limits):
    with pytest.raises(LabError, match=next(iter(limits))):
        Limits(**limits)


# Keys and addresses


def test_the_key_is_asked_for_everywhere_but_health(tiny_model):
    with live(tiny_model, api_key="s3cret-ü") as url:
        assert httpx.get(f"{url}/health").status_code == httpx.get(f"{url}/livez").status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret"}):
            refused(httpx.get(f"{url}/v1/models", headers=headers), 401, "invalid_api_key")
        right = {"Authorization": "Bearer s3cret-ü".encode()}
        assert httpx.get(f"{url}/v1/models", headers=right).status_code == 200
        assert "s3cret" not in httpx.get(f"{url}/contract", headers=right).text


def test_an_open_address_without_a_key_is_refused(monkeypatch):
    monkeypatch.delenv(contract.KEY_VARIABLE, raising=False)
    for host in ("0.0.0.0", "::", "192.168.0.7", "example.org"):
        with pytest.raises(LabError, match="no API key is set"):
            runtimes.start_server(host=host, port=free_port())
    for host in ("127.0.0.1", "localhost", "::1"):
        assert process.with_key(ServerSettings(host=host)).api_key == ""
    monkeypatch.setenv(contract.KEY_VARIABLE, "k")
    assert process.with_key(ServerSettings(host="0.0.0.0")).api_key == "k"
    assert "'k'" not in repr(process.with_key(ServerSettings()))


# Servers as processes


def test_smoke_test_of_a_live_server(server):
    proof = smoke.smoke_test(server.base_url + "/v1")
    assert (proof["base_url"], proof["model"], proof["has_choices"]) == (server.base_url, "tiny-llama", True)
    assert proof["health"]["status"] == "ok"
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


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 0), ("127.0.0.1", 70000), ("203.0.113.9", 8123)])
def test_an_impossible_address_is_named(host, port):
    with pytest.raises(LabError, match=r"is not a port|cannot listen on"):
        process.claim_port(host, port)


def test_a_wrong_model_path_gives_the_childs_own_reason(tmp_path):
    port = free_port()
    with pytest.raises(LabError, match="no model folder called missing-model") as caught:
        runtimes.start_server(str(tmp_path / "missing-model"), port=port, log=tmp_path / "log")
    assert caught.value.next_step
    assert str(tmp_path) not in str(caught.value)
    assert not process.port_open("127.0.0.1", port)


def test_a_server_that_is_not_healthy_in_time_is_ended(tiny_model_folder, tmp_path):
    port = free_port()
    with pytest.raises(LabError, match=r"not healthy within 0\.2 s"):
        runtimes.start_server(str(tiny_model_folder), port=port, log=tmp_path / "log", timeout=0.2)
    assert not process.port_open("127.0.0.1", port)


def test_errors_carry_no_folder_of_this_machine():
    text = "no file in /home/ann/models/tiny or C:\\Users\\ann\\tiny; see http://127.0.0.1:8000/v1 and a/b"
    assert runtimes.without_paths(text) == "no file in tiny or tiny; see http://127.0.0.1:8000/v1 and a/b"


def test_an_answer_that_outlasts_the_drain_is_503(tiny_model):
    answers = []
    with live(tiny_model, LONG, drain=0.2) as url:
        asking = threading.Thread(target=lambda: answers.append(chat(url, max_tokens=3000)))
        asking.start()
        until(lambda: httpx.get(f"{url}/health").json()["running"] == 1)
    asking.join()
    refused(answers[0], 503, "server_busy")


def test_stopping_drains_and_proves_it(tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    log, port = tmp_path / "log", free_port()
    handle = runtimes.start_server(str(tiny_model_folder), port=port, device="cpu", limits=LONG, log=log)
    state = process.running_server(port)
    assert (state.pid, state.model, state.limits["queue"]) == (handle.pid, "tiny-llama", 1)
    answers = []
    asking = threading.Thread(target=lambda: answers.append(chat(handle.base_url, max_tokens=200)))
    asking.start()
    until(lambda: answers or httpx.get(f"{handle.base_url}/health").json()["running"] == 1)
    proof = handle.stop(hourly_usd=3600.0)
    asking.join()
    assert answers[0].json()["usage"]["completion_tokens"] == 200
    assert proof["process_gone"] is proof["port_closed"] is True
    assert (proof["pid"], proof["port"], proof["signal"]) == (handle.pid, port, "SIGTERM")
    assert proof["cost_usd"] == proof["seconds"] >= 1
    assert proof["gpu_memory"] == "not visible" or proof["gpu_memory"].endswith("MiB freed")
    assert handle.process.returncode == 0
    assert not process.state_file(port).exists()
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


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_ctrl_c_leaves_nothing_behind(tiny_model_folder, tmp_path):
    port = free_port()
    with runtimes.start_server(str(tiny_model_folder), port=port, device="cpu", log=tmp_path / "log") as handle:
        handle.process.send_signal(signal.SIGINT)
        assert handle.process.wait(15) == 0
    assert not process.state_file(port).exists()
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a shell script")
def test_gpu_memory_is_what_nvidia_smi_says(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutdown.gpu_memory_mib() is None
    program = tmp_path / "nvidia-smi"
    for said, understood in (("400\n12", 412), ("[N/A]", None)):
        program.write_text(f"#!/bin/sh\necho '{said}'\n")
        program.chmod(0o755)
        assert shutdown.gpu_memory_mib() == understood
    assert shutdown._freed(412, 12) == "400 MiB freed"
    assert shutdown._freed(None, 12) == "not visible"


def test_a_state_file_of_a_process_that_is_gone_stops_nobody(server, monkeypatch, tmp_path):
    monkeypatch.setattr(process, "STATE", tmp_path)
    state = json.loads((runtimes.STATE / f"server-{server.port}.json").read_text())
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


def test_every_runtime_row_is_filled_and_stays_on_loopback():
    for runtime in runtimes.RUNTIMES:
        assert runtime.tried in ("run here", "not run here")
        assert runtime.start
        assert runtime.needs
        assert runtime.health.startswith("/")
        assert "0.0.0.0" not in runtime.start
