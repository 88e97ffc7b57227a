"""Tools, reasoning and the output filter as clients meet them: through the openai client, streamed and not."""

import json

import openai
import pytest
from test_tool_calls import HERMES_TEMPLATE, LLAMA_TEMPLATE, MISTRAL_ARGS_TEMPLATE, MISTRAL_TEMPLATE
from tiny_server import CHATML, HELLO, chat, live, refused

from labkit.errors import LabError
from labkit.generation import Completion
from labkit.serving.contract import Limits, ServerSettings
from labkit.serving.plan import Planner
from labkit.serving.scheduler import Piece
from labkit.serving.schema import ChatRequest

ROOMY = Limits(1500, 120, 65536, 60, concurrency=2, queue=2)
SYMBOL = {"type": "object", "properties": {"symbol": {"type": "string", "enum": ["AAPL", "NVDA"]}}}
PRICE = {
    "type": "function",
    "function": {
        "name": "get_stock_price",
        "description": "The latest price of a share.",
        "parameters": {**SYMBOL, "required": ["symbol"], "additionalProperties": False},
    },
}
FORCED = {"type": "function", "function": {"name": "get_stock_price"}}


@pytest.fixture(
    params=[HERMES_TEMPLATE, LLAMA_TEMPLATE, MISTRAL_TEMPLATE, MISTRAL_ARGS_TEMPLATE],
    ids=["hermes", "llama", "mistral", "mistral-args"],
)
def url(tiny_model, monkeypatch, request):
    monkeypatch.setattr(tiny_model.tokenizer, "chat_template", request.param)
    with live(tiny_model, ROOMY) as base_url:
        yield base_url


def ask(url, **more):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    return client.chat.completions.create(model="tiny-llama", messages=HELLO, **{"tools": [PRICE], **more})


def test_a_forced_call_is_one_valid_call_of_a_model_that_knows_nothing(url):
    choice = ask(url, tool_choice=FORCED, temperature=1.5, seed=3).choices[0]
    (call,) = choice.message.tool_calls
    assert call.function.name == "get_stock_price"
    assert json.loads(call.function.arguments)["symbol"] in ("AAPL", "NVDA")
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    required = ask(url, tool_choice="required").choices[0].message
    assert [call.function.name for call in required.tool_calls] == ["get_stock_price"]


def test_a_streamed_call_is_the_same_call(url):
    plain = ask(url, tool_choice=FORCED, seed=1).choices[0]
    chunks = [chunk.choices[0] for chunk in ask(url, tool_choice=FORCED, seed=1, stream=True)]
    (call,) = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
    assert call.function.arguments == plain.message.tool_calls[0].function.arguments
    assert chunks[-1].finish_reason == plain.finish_reason == "tool_calls"


def test_the_guides_function_calling_loop(url):
    """Call, run the function, send its result: the client's own message object goes back as it came."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    messages = [{"role": "user", "content": "What is the price of Apple?"}]
    body = {"model": "tiny-llama", "messages": messages, "tools": [PRICE], "max_tokens": 60}
    assert client.chat.completions.create(**body, tool_choice="auto").choices[0].finish_reason in ("length", "stop")
    message = client.chat.completions.create(**body, tool_choice="required").choices[0].message
    messages.append(message)
    for call in message.tool_calls:
        price = {"symbol": json.loads(call.function.arguments)["symbol"], "price": 150.25}
        messages.append({"role": "tool", "tool_call_id": call.id, "content": json.dumps(price)})
    assert client.chat.completions.create(**body).usage.prompt_tokens > 0


@pytest.mark.parametrize(("parallel", "calls"), [(None, 2), (True, 2), (False, 1)])
def test_one_call_at_most_where_parallel_calls_are_not_wanted(tiny_model, monkeypatch, parallel, calls):
    """The text is written by hand: no random model calls twice."""
    monkeypatch.setattr(tiny_model.tokenizer, "chat_template", HERMES_TEMPLATE)
    asked = ChatRequest.model_validate({"messages": HELLO, "tools": [PRICE], "parallel_tool_calls": parallel})
    planner = Planner(tiny_model, ROOMY)
    _, (draft,) = planner.orders(asked, planner.plan(asked))
    call = '<tool_call>{"name": "get_stock_price", "arguments": {"symbol": "AAPL"}}</tool_call>'
    deltas = draft.feed(Piece(f"Both:\n{call}\n{call}", tokens=9)).deltas
    assert [delta["content"] for delta in deltas if "content" in delta] == ["Both:"]
    assert len([delta for delta in deltas if "tool_calls" in delta]) == calls
    assert draft.finish(Completion("", 9, 9, "stop", 0.0, 0.0)).finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": None, "parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tools": [PRICE, PRICE]}, "tools"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
    ],
)
def test_senseless_tools_are_refused(tiny_model, monkeypatch, more, param):
    monkeypatch.setattr(tiny_model.tokenizer, "chat_template", HERMES_TEMPLATE)
    with live(tiny_model, ROOMY) as url:
        assert refused(chat(url, **{"tools": [PRICE], **more}), 400, "invalid_value", param)


def test_a_history_that_does_not_fit_is_the_clients_error(tiny_model, monkeypatch):
    monkeypatch.setattr(tiny_model.tokenizer, "chat_template", HERMES_TEMPLATE)
    lost = [*HELLO, {"role": "tool", "tool_call_id": "nobody", "content": "7"}]
    broken = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{"}}
    bad = [*HELLO, {"role": "assistant", "tool_calls": [broken]}]
    schema = {"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}
    with live(tiny_model, ROOMY) as url:
        assert "no message before it made" in refused(chat(url, messages=lost), 400, "invalid_value", "messages")
        half = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"a": "\\ud800"}'}}
        deep = {
            "id": "a",
            "type": "function",
            "function": {"name": "f", "arguments": '{"a": ' + "[" * 950 + "]" * 950 + "}"},
        }
        replayed, buried = ([*HELLO, {"role": "assistant", "tool_calls": [call]}] for call in (half, deep))
        assert refused(chat(url, messages=replayed), 400, "invalid_value", "messages")
        assert chat(url, messages=buried).status_code == 400, "too deep to be written, or else too long"
        assert "not a JSON object" in refused(chat(url, messages=bad), 400, "invalid_value", "messages")
        assert refused(chat(url, tools=[schema], tool_choice="required"), 400, "invalid_value", "tools")


def test_a_model_whose_template_knows_no_tools_refuses_them(tiny_model):
    with live(tiny_model, ROOMY) as url:
        assert refused(chat(url, tools=[PRICE]), 400, "unsupported_parameter", "tools")


def test_thinking_is_told_apart_from_the_answer(tiny_model, monkeypatch):
    """The prompt opens the thinking; the model, which is random, never closes it."""
    opened = CHATML.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")
    monkeypatch.setattr(tiny_model.tokenizer, "chat_template", opened)
    with live(tiny_model, ROOMY) as url:
        message = ask(url, tools=openai.omit, max_tokens=12).choices[0].message
        assert message.reasoning_content
        assert not message.content
        streamed = ask(url, tools=openai.omit, max_tokens=12, stream=True)
        thought = "".join(getattr(chunk.choices[0].delta, "reasoning_content", "") or "" for chunk in streamed)
        assert thought == message.reasoning_content
        form = {"type": "json_schema", "json_schema": {"name": "form", "schema": {"enum": ["yes"]}}}
        forced = chat(url, response_format=form).json()["choices"][0]["message"]
        assert (forced["content"], "reasoning_content" in forced) == ('"yes"', False)
        history = [*HELLO, {"role": "assistant", "content": "x", "reasoning_content": "y"}, *HELLO]
        assert chat(url, messages=history, max_tokens=1).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_with_a_forbidden_text_is_kept_in(tiny_model, stream):
    with live(tiny_model, ROOMY) as url:
        whole = chat(url, max_tokens=12).json()["choices"][0]["message"]["content"]
    forbidden = "".join(f"[{letter}]" if letter not in "^\\[]" else "." for letter in whole[3:6])
    with live(tiny_model, ROOMY, output_filter=forbidden) as url:
        response = chat(url, max_tokens=12, stream=stream)
        assert "content_filter" in response.text
        assert whole[3:6] not in response.text
        short = chat(url, max_tokens=2, stream=stream)
        assert "content_filter" not in short.text
        assert stream or short.json()["choices"][0]["message"]["content"]
    with pytest.raises(LabError, match="no regular expression"):
        ServerSettings(output_filter="(")
