"""The server keeps its contract: what it answers, and what it refuses and how."""

import asyncio
import hashlib
import http.client
import json
import queue
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Literal

import httpx
import jsonschema
import openai
import pydantic
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tiny_server import HELLO, LONG, SMALL, chat, live, refused, until

from labkit.errors import LabError
from labkit.generation import Completion, Sampling
from labkit.generation.batch import Batch
from labkit.serving import contract
from labkit.serving import scheduler as scheduling
from labkit.serving.app import create_app
from labkit.serving.contract import Limits, ServerSettings
from labkit.serving.gate import JsonLines
from labkit.serving.jobs import Admission, Job, Mailbox
from labkit.serving.scheduler import Order, Piece, Scheduler, Wanted
from labkit.serving.schema import ChatRequest


@pytest.fixture(scope="module")
def url(tiny_model):
    with live(tiny_model) as base_url:
        yield base_url


@pytest.fixture(scope="module")
def long_url(tiny_model):
    with live(tiny_model, LONG) as base_url:
        yield base_url


@pytest.fixture(scope="module")
def wide_url(tiny_model):
    with live(tiny_model, replace(SMALL, concurrency=4, queue=8)) as base_url:
        yield base_url


def json_schema(schema):
    return {"type": "json_schema", "json_schema": {"name": "form", "schema": schema}}


def answer(url, **body):
    response = chat(url, **body)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


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
    assert plain.usage.prompt_tokens == len(tiny_model.prompt_ids(HELLO))
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


def test_a_whole_number_may_be_written_as_a_float(url):
    assert chat(url, max_tokens=2.0, n=1.0).json()["usage"]["completion_tokens"] == 2


def test_text_parts_are_one_text(url):
    parts = [{"role": "user", "content": [{"type": "text", "text": "hello "}, {"type": "text", "text": "there"}]}]
    assert answer(url, messages=parts)["message"] == answer(url)["message"]


def test_n_answers_are_those_of_n_seeds(wide_url):
    both = chat(wide_url, n=2, seed=5, temperature=1.5, max_tokens=12).json()
    texts = [choice["message"]["content"] for choice in both["choices"]]
    singles = [answer(wide_url, seed=seed, temperature=1.5, max_tokens=12) for seed in (5, 6)]
    assert texts == [one["message"]["content"] for one in singles]
    assert both["usage"]["completion_tokens"] == 24
    stream = client(wide_url).chat.completions.create(
        model="tiny-llama", messages=HELLO, n=2, seed=5, temperature=1.5, max_tokens=12, stream=True
    )
    streamed = ["", ""]
    for chunk in stream:
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_answers_that_are_made_together_are_those_made_alone(wide_url):
    """Rows of unequal length, joining while others are half done: padding and positions must not change an answer."""
    prompts = ["hi", "hello there user", "x" * 40, "what", "and then?", "hello " * 8]

    def ask(prompt):
        return answer(wide_url, messages=[{"role": "user", "content": prompt}], max_tokens=25)["message"]["content"]

    alone = [ask(prompt) for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        assert list(pool.map(ask, prompts)) == alone


def test_penalties_keep_a_token_from_coming_again(url):
    repeated = answer(url, logprobs=True, max_tokens=30)["logprobs"]["content"]
    punished = answer(url, logprobs=True, max_tokens=30, frequency_penalty=2, presence_penalty=2)["logprobs"]["content"]
    assert len({score["token"] for score in punished}) > len({score["token"] for score in repeated})


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_told_for_each_token(url, stream):
    body = {"logprobs": True, "top_logprobs": 3, "max_tokens": 6}
    if stream:
        chunks = [json.loads(line[6:]) for line in chat(url, stream=True, **body).text.split("\n\n")[:-2]]
        scores = [s for c in chunks for s in (c["choices"][0]["logprobs"] or {"content": []})["content"]]
    else:
        scores = answer(url, **body)["logprobs"]["content"]
    assert len(scores) == 6
    for score in scores:  # greedy: the chosen token is the likeliest
        assert len(score["top_logprobs"]) == 3
        assert score["logprob"] == score["top_logprobs"][0]["logprob"] <= 0
        assert bytes(score["bytes"]).decode() == score["token"]


def test_a_schema_is_kept_by_a_model_that_knows_nothing(url):
    """A random model: without the constraint not one of its answers would parse."""
    form = {"type": "object", "properties": {"id": {"type": "integer", "maximum": 99}, "kind": {"enum": ["a", "b"]}}}
    closed = {**form, "required": ["id", "kind"], "additionalProperties": False}
    for seed in range(5):
        choice = answer(url, response_format=json_schema(closed), temperature=1.5, seed=seed)
        said = json.loads(choice["message"]["content"])
        assert set(said) == {"id", "kind"}
        assert said["kind"] in "ab"
        assert choice["finish_reason"] == "stop"


def test_json_object_gives_json_or_is_cut_at_the_length(url):
    choice = answer(url, response_format={"type": "json_object"}, temperature=1.0, seed=1)
    assert choice["message"]["content"].startswith("{")
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)


def test_the_openai_clients_structured_parse(url):
    class Ticket(pydantic.BaseModel):
        open: bool
        kind: Literal["refund", "repair"]

    done = client(url).chat.completions.parse(model="tiny-llama", messages=HELLO, response_format=Ticket)
    assert isinstance(done.choices[0].message.parsed, Ticket)


def test_completions_go_on_from_a_text(wide_url, tiny_model):
    one = client(wide_url).completions.create(model="tiny-llama", prompt="hello", max_tokens=8, logprobs=2)
    assert one.usage.prompt_tokens == len(tiny_model.text_ids("hello"))
    text, told = one.choices[0].text, one.choices[0].logprobs
    assert len(told.tokens) == 8
    assert all(text[at:].startswith(token) for at, token in zip(told.text_offset, told.tokens, strict=True))
    two = client(wide_url).completions.create(model="tiny-llama", prompt=["hello", "there"], max_tokens=8)
    assert [choice.index for choice in two.choices] == [0, 1]
    assert two.choices[0].text == one.choices[0].text
    assert two.usage.prompt_tokens == sum(len(tiny_model.text_ids(prompt)) for prompt in ("hello", "there"))
    stream = client(wide_url).completions.create(model="tiny-llama", prompt="hello", max_tokens=8, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == one.choices[0].text


@pytest.mark.parametrize(
    ("body", "param"), [({}, "prompt"), ({"prompt": ""}, "prompt"), ({"prompt": "a" * 200}, "prompt"), ({"n": 2}, "n")]
)
def test_bad_completions_are_refused(url, body, param):
    body = {"prompt": "hello", **body} if body else body
    response = httpx.post(f"{url}/v1/completions", json=body)
    assert refused(response, 400, "context_length_exceeded" if len(str(body)) > 150 else "invalid_value", param)


def test_completions_do_not_score_their_prompt(url):
    """Harnesses ask so for the log-likelihood of a given answer."""
    asked = {"prompt": "hello", "echo": True, "logprobs": 1, "max_tokens": 1}
    assert refused(httpx.post(f"{url}/v1/completions", json=asked), 400, "unsupported_parameter", "echo")


# What the server refuses

BAD_VALUES = [
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0"),
    ({"messages": [{"role": "user", "content": "x", "tool_call_id": "1"}]}, "messages.0"),
    ({"messages": [{"role": "user", "content": "x", "reasoning_content": "y"}]}, "messages.0"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content"),
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
    ({"n": 10**50}, "n"),
    ({"max_tokens": 10**50}, "max_tokens"),
    ({"response_format": json_schema({"allOf": [{"pattern": "a"}] * 5})}, "response_format"),
    ({"response_format": json_schema({"$ref": "#"})}, "response_format"),
    ({"response_format": json_schema({"type": "integer", "multipleOf": 0})}, "response_format"),
    ({"response_format": json_schema({"items": {"type": "number", "multipleOf": "2"}})}, "response_format"),
    ({"logprobs": 1}, "logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"frequency_penalty": "much"}, "frequency_penalty"),
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "response_format.json_schema.name"),
    ({"response_format": json_schema({"type": "objet"})}, "response_format"),
    ({"response_format": json_schema({"not": {"type": "string"}})}, "response_format"),
    ({"tools": []}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": "sometimes"}, "tool_choice"),
    ({"tool_choice": 3}, "tool_choice"),
    ({"max_tokens": 4.5}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"seed": 1e300}, "seed"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
]
NOT_HONOURED = [
    ({"logit_bias": {"1": 5}}, "logit_bias"),
    ({"temprature": 1}, "temprature"),
    ({"Temperature": 1}, "Temperature"),
    ({"str": 1}, "str"),
    ({"a[b": 1}, "a[b"),
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
    def broken(**inputs):
        raise RuntimeError(f"cannot answer {tiny_model.tokenizer.decode(inputs['input_ids'][0])}")

    with live(tiny_model) as url:
        with monkeypatch.context() as patch:
            patch.setattr(tiny_model.network.model, "forward", broken)
            message = refused(chat(url), 500, "internal_error")
            assert "internal_error" in chat(url, stream=True).text
        assert chat(url, max_tokens=2).status_code == 200
    assert message.split()[-1] in caplog.text
    assert "RuntimeError" in caplog.text
    assert HELLO[0]["content"] not in caplog.text


def test_a_batch_that_cannot_go_on_ends_its_answers_and_no_others(tiny_model, monkeypatch):
    """What a row leaves behind cannot be taken out: the network's thread must live on, and /health must say ok."""

    def broken(self, row):
        raise RuntimeError("out of memory")

    with live(tiny_model) as url:
        with monkeypatch.context() as patch:
            patch.setattr(Batch, "leave", broken)
            assert chat(url, max_tokens=3).status_code == 200
        assert chat(url, max_tokens=3).status_code == 200
        health = httpx.get(f"{url}/health").json()
        assert (health["status"], health["running"], health["waiting"]) == ("ok", 0, 0)


# The limits of the contract, broken one by one


def test_the_contract_document_is_what_the_server_enforces(url, tiny_model):
    document = httpx.get(f"{url}/contract").json()
    limits = document["limits"]
    assert limits == {**{f: getattr(SMALL, f) for f in limits}, "max_images": 0}  # the model reads text alone
    assert set(document["request"]) == set(ChatRequest.model_fields)
    assert set(document["errors"]) == {str(status) for status, _, _ in contract.ERRORS.values()}
    assert document["stop"]["command"].endswith(url.rsplit(":", 1)[1])
    assert (document["model"], document["revision"]) == ("tiny-llama", tiny_model.revision)

    most = limits["max_output_tokens"]
    assert chat(url, max_tokens=most).status_code == 200
    assert chat(url).json()["usage"]["completion_tokens"] == most
    assert refused(chat(url, max_tokens=most + 1), 400, "invalid_value", "max_tokens")

    def prompt(tokens):
        spare = tokens - len(tiny_model.prompt_ids([{"role": "user", "content": ""}]))
        return [{"role": "user", "content": "~" * spare}]

    fits = prompt(limits["max_input_tokens"])
    assert len(tiny_model.prompt_ids(fits)) == limits["max_input_tokens"]
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


def tokens_made(url):
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    samples = [sample for family in families if family.name == "labkit_tokens" for sample in family.samples]
    return sum(s.value for s in samples if s.name.endswith("_total") and s.labels["kind"] == "completion")


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
    made = tokens_made(long_url)
    plain.close()
    until(lambda: load() == (1, 0))
    streaming.getresponse().read(100)
    streaming.close()
    until(lambda: load() == (0, 0))
    assert chat(long_url, max_tokens=1).status_code == 200
    assert tokens_made(long_url) - made < 3000, "one of the two was made to its end"


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
    with live(tiny_model, api_keys=("s3cret-ü", "another")) as url:
        assert httpx.get(f"{url}/health").status_code == httpx.get(f"{url}/livez").status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret"}):
            assert refused(httpx.get(f"{url}/v1/models", headers=headers), 401, "invalid_api_key")
        right = {"Authorization": "Bearer s3cret-ü".encode()}
        assert httpx.get(f"{url}/v1/models", headers=right).status_code == 200
        assert "s3cret" not in httpx.get(f"{url}/contract", headers=right).text


def test_every_key_opens_and_each_has_its_own_rate(tiny_model):
    with live(tiny_model, replace(SMALL, requests_per_minute=2), api_keys=("one", "two")) as url:

        def ask(key):
            headers = {"Authorization": f"Bearer {key}"}
            body = {"messages": HELLO, "max_tokens": 1}
            return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers)

        assert [ask("one").status_code for _ in range(2)] == [200, 200]
        over = ask("one")
        assert "2 requests a minute" in refused(over, 429, "rate_limit_exceeded")
        assert 1 <= int(over.headers["Retry-After"]) <= 61
        assert ask("two").status_code == 200
        assert httpx.get(f"{url}/v1/models", headers={"Authorization": "Bearer one"}).status_code == 200


# The document


def validator(document, path, method, status):
    """Checks a body against what /openapi.json says of it, references and all."""
    schema = document["paths"][path][method]["responses"][str(status)]["content"]["application/json"]["schema"]
    return jsonschema.Draft202012Validator({**schema, "components": document["components"]})


def test_the_openapi_document_is_true(wide_url):
    document = httpx.get(f"{wide_url}/openapi.json").json()
    bodies = {
        "/v1/chat/completions": [{"messages": HELLO, "max_tokens": 3, "logprobs": True, "top_logprobs": 1, "n": 2}],
        "/v1/completions": [{"prompt": "hello", "max_tokens": 3, "logprobs": 1}, {"prompt": "hello", "max_tokens": 1}],
    }
    for path, asked in bodies.items():
        kind = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        request = jsonschema.Draft202012Validator({**kind, "components": document["components"]})
        for body in asked:
            request.validate(body)
            answered = httpx.post(f"{wide_url}{path}", json=body)
            validator(document, path, "post", 200).validate(answered.json())
        assert not request.is_valid({**asked[0], "nobody": 1})
        refusal = httpx.post(f"{wide_url}{path}", json={"nobody": 1})
        validator(document, path, "post", refusal.status_code).validate(refusal.json())
    for path in ("/health", "/v1/models"):
        validator(document, path, "get", 200).validate(httpx.get(f"{wide_url}{path}").json())
    stated = {status for method in document["paths"]["/v1/chat/completions"].values() for status in method["responses"]}
    assert stated == {"200"} | {str(status) for status, _, _ in contract.ERRORS.values()} - {"401", "405"}


# What the operator sees


def test_each_request_is_one_line_of_log_without_its_prompt(tiny_model, caplog):
    caplog.set_level("INFO", "labkit.serving")
    with live(tiny_model, api_keys=("s3cret",)) as url:
        headers = {"Authorization": "Bearer s3cret"}
        body = {"messages": HELLO, "max_tokens": 3}
        said = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers)
        streamed = httpx.post(f"{url}/v1/chat/completions", json={**body, "stream": True}, headers=headers)
        wrong = httpx.get(f"{url}/v1/models")
        until(lambda: len(caplog.records) == 3)
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records]
    assert [line["request_id"] for line in lines] == [r.headers["x-request-id"] for r in (said, streamed, wrong)]
    assert [line["status"] for line in lines] == [200, 200, 401]
    for line in lines[:2]:
        assert line["client"] == hashlib.sha256(b"s3cret").hexdigest()[:8]
        assert (line["completion_tokens"], line["finish_reasons"]) == (3, ["length"])
        assert line["prompt_tokens"] == len(tiny_model.prompt_ids(HELLO))
        assert 0 < line["first_token_seconds"] <= line["seconds"]
    text = json.dumps(lines)
    assert HELLO[0]["content"] not in text
    assert "s3cret" not in text


def test_prompts_are_logged_only_when_asked(tiny_model, caplog):
    caplog.set_level("INFO", "labkit.serving")
    with live(tiny_model, log_prompts=True) as url:
        chat(url, max_tokens=1)
        until(lambda: caplog.records)
    assert HELLO[0]["content"] in json.loads(JsonLines().format(caplog.records[0]))["prompt"]


def test_metrics_count_requests_and_tokens(tiny_model):
    with live(tiny_model) as url:
        tokens = chat(url, max_tokens=5).json()["usage"]
        chat(url, max_tokens=0)
        httpx.get(f"{url}/a/path/nobody/knows")
        page = httpx.get(f"{url}/metrics").text
    found = {f.name: f for f in text_string_to_metric_families(page)}
    requests = {(s.labels["path"], s.labels["status"]): s.value for s in found["labkit_requests"].samples}
    assert requests[("/v1/chat/completions", "200")] == requests[("/v1/chat/completions", "400")] == 1
    assert requests[("other", "404")] == 1
    counts = {s.labels["kind"]: s.value for s in found["labkit_tokens"].samples if s.name.endswith("_total")}
    assert counts == {"prompt": tokens["prompt_tokens"], "completion": tokens["completion_tokens"]}
    assert found["labkit_running"].samples[0].value == 0


def ask(scheduler, wanted, streamed):
    """An order, and the queue in which its items arrive."""
    items = queue.Queue()
    scheduler.submit([Order(wanted, items.put, lambda: None, streamed)])
    return items


def tokens_of_pieces(items):
    """The tokens of each piece until the answer is whole, and the answer's text in pieces and in one."""
    pieces = []
    while isinstance(item := items.get(timeout=20), Piece):
        pieces.append(item)
    return [piece.tokens for piece in pieces], "".join(piece.text for piece in pieces), item.text


@pytest.mark.parametrize(("streamed", "told"), [(True, [1, 29]), (False, [30])])
def test_a_streams_first_token_is_told_at_once_and_those_of_some_time_together(tiny_model, monkeypatch, streamed, told):
    monkeypatch.setattr(scheduling, "PIECE_SECONDS", 60.0)
    scheduler = Scheduler(tiny_model, 1)
    tokens, in_pieces, whole = tokens_of_pieces(
        ask(scheduler, Wanted(tiny_model.prompt_ids(HELLO), Sampling(max_tokens=30)), streamed)
    )
    scheduler.close()
    assert tokens == told
    assert in_pieces == whole


def test_a_stream_is_told_what_it_has_before_another_prompt_is_read(tiny_model, monkeypatch):
    monkeypatch.setattr(scheduling, "PIECE_SECONDS", 60.0)
    scheduler, wanted = Scheduler(tiny_model, 2), Wanted(tiny_model.prompt_ids(HELLO), Sampling(max_tokens=3500))
    first = ask(scheduler, wanted, streamed=True)
    assert first.get(timeout=20).tokens == 1
    time.sleep(0.1)
    ask(scheduler, replace(wanted, sampling=Sampling(max_tokens=1)), streamed=False).get(timeout=20)
    tokens, *_ = tokens_of_pieces(first)
    scheduler.close()
    assert len(tokens) == 2
    assert sum(tokens) == 3499


def test_the_event_loop_is_woken_once_for_all_that_came_meanwhile():
    woken, called = [], []
    mailbox = Mailbox(SimpleNamespace(call_soon_threadsafe=woken.append))
    for number in range(3):
        mailbox.post(lambda number=number: called.append(number))
    assert len(woken) == 1
    woken.pop()()
    assert called == [0, 1, 2]
    mailbox.post(lambda: called.append(3))
    woken.pop()()
    assert called == [0, 1, 2, 3]


def test_the_slot_is_free_when_the_answer_is_whole(tiny_model):
    """A client that holds its whole answer may ask again at once; its own answer must not fill the server."""

    async def taken_at_the_end() -> int:
        admission, scheduler = Admission(SMALL), Scheduler(tiny_model, 1)
        deadline = asyncio.get_running_loop().time() + 20
        job = Job(
            [Wanted(tiny_model.prompt_ids(HELLO), Sampling(max_tokens=5))],
            scheduler,
            admission,
            Mailbox(asyncio.get_running_loop()),
            deadline,
            streamed=True,
        )
        await job.start()
        async for _, item in job.items():
            if isinstance(item, Completion):
                scheduler.close()
                return admission.taken
        return -1

    assert asyncio.run(taken_at_the_end()) == 0
