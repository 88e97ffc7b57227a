"""The server keeps its contract: what it answers, and what it refuses and how."""

import asyncio
import http.client
import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import openai
import pytest
from tiny_server import HELLO, LONG, SMALL, chat, live, refused, until

from labkit.errors import LabError
from labkit.generation import Completion, Sampling
from labkit.serving import contract
from labkit.serving.app import create_app
from labkit.serving.contract import Limits, ServerSettings
from labkit.serving.jobs import Job, Slots


@pytest.fixture(scope="module")
def url(tiny_model):
    with live(tiny_model) as base_url:
        yield base_url


@pytest.fixture(scope="module")
def long_url(tiny_model):
    with live(tiny_model, LONG) as base_url:
        yield base_url


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
    assert refused(httpx.get(f"{url}/v1/models/other"), 404, "model_not_found")


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
    assert refused(chat(url, **body), 400, "invalid_value", param)


@pytest.mark.parametrize(("body", "param"), NOT_HONOURED)
def test_parameters_that_are_not_honoured_are_refused(url, body, param):
    assert refused(chat(url, **body), 400, "unsupported_parameter", param)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 3000, b'{"\\ud800": 1}'])
def test_malformed_json_is_refused(url, body):
    headers = {"Content-Type": "application/json"}
    assert refused(httpx.post(f"{url}/v1/chat/completions", content=body, headers=headers), 400, "invalid_json")


def test_wrong_places_are_refused(url):
    assert refused(httpx.get(f"{url}/nothing/here"), 404, "not_found")
    assert refused(httpx.get(f"{url}/v1/chat/completions"), 405, "method_not_allowed")
    assert refused(httpx.post(f"{url}/v1/chat/completions", content=b"{}"), 415, "unsupported_media_type")
    assert refused(chat(url, model="gpt-4"), 404, "model_not_found", "model")
    response = chat(url, messages=None)
    assert refused(response, 400, "invalid_value", "messages")


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
    assert refused(chat(url, max_tokens=most + 1), 400, "invalid_value", "max_tokens")

    def prompt(tokens):
        spare = tokens - tiny_model.count_tokens([{"role": "user", "content": ""}])
        return [{"role": "user", "content": "~" * spare}]

    fits = prompt(limits["max_input_tokens"])
    assert tiny_model.count_tokens(fits) == limits["max_input_tokens"]
    assert chat(url, messages=fits, max_tokens=1).status_code == 200
    over = prompt(limits["max_input_tokens"] + 1)
    assert refused(chat(url, messages=over), 400, "context_length_exceeded", "messages")
    assert refused(chat(url, messages=over, stream=True), 400, "context_length_exceeded", "messages")

    for size in (limits["max_body_bytes"] + 1, 3_000_000):
        assert refused(chat(url, messages=[{"role": "user", "content": "a" * size}]), 413, "body_too_large")
    headers = {"Content-Type": "application/json"}
    chunked = httpx.post(f"{url}/v1/chat/completions", content=(b"a" * 1000 for _ in range(50)), headers=headers)
    assert refused(chunked, 413, "body_too_large")


def test_limits_never_exceed_the_models_context(tiny_model):
    app = create_app(tiny_model, ServerSettings(limits=Limits(10**6, 10**6)))
    assert app.state.settings.limits.max_input_tokens == tiny_model.context_length - 1
    with live(tiny_model, Limits(4000, 4000, 10**6)) as url:
        assert refused(chat(url, max_tokens=4000, messages=HELLO * 20), 400, "context_length_exceeded", "messages")


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
    assert refused(full, 503, "server_busy")
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
        assert refused(chat(url, max_tokens=3000), 504, "request_timeout")
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
            assert refused(httpx.get(f"{url}/v1/models", headers=headers), 401, "invalid_api_key")
        right = {"Authorization": "Bearer s3cret-ü".encode()}
        assert httpx.get(f"{url}/v1/models", headers=right).status_code == 200
        assert "s3cret" not in httpx.get(f"{url}/contract", headers=right).text


def test_the_slot_is_free_when_the_answer_is_whole(tiny_model):
    """A client that holds its whole answer may ask again at once; its own answer must not fill the server."""

    async def running_at_the_end() -> int:
        slots = Slots(SMALL)
        job = Job(tiny_model, [{"role": "user", "content": "hello"}], Sampling(max_tokens=5), SMALL)
        with ThreadPoolExecutor(1) as workers:
            await job.start(slots, workers)
            async for item in job.items():
                if isinstance(item, Completion):
                    return slots.running
        return -1

    assert asyncio.run(running_at_the_end()) == 0
