"""/openapi.json allows what the server takes and forbids what it refuses, also where that is no type."""

import json

import jsonschema
import pytest
from test_tool_calls import HERMES_TEMPLATE
from tiny_server import HELLO, SMALL

from labkit.serving.app import create_app
from labkit.serving.contract import Refusal, ServerSettings
from labkit.serving.reading import read_request
from labkit.serving.schema import ChatRequest, CompletionRequest

CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f"}}
TAKEN_MESSAGES = [
    {"role": "user", "content": "x", "tool_calls": [], "reasoning_content": "", "tool_call_id": None},
    {"role": "developer", "content": [{"type": "text", "text": "x"}]},
    {"role": "assistant", "content": "x", "reasoning_content": "y"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "content": "x", "tool_call_id": "a"},
]
REFUSED_MESSAGES = [
    {"role": "user", "content": None},
    {"role": "user", "content": "x", "tool_call_id": "a"},
    {"role": "system", "content": "x", "tool_calls": [CALL]},
    {"role": "developer", "content": "x", "reasoning_content": "y"},
    {"role": "assistant", "tool_calls": []},
    {"role": "assistant", "content": "x", "tool_call_id": "a"},
    {"role": "tool", "content": "x", "tool_call_id": None},
    {"role": "tool", "tool_call_id": "a"},
]
TAKEN = [
    *({"messages": [message]} for message in TAKEN_MESSAGES),
    {"model": "tiny-llama"},
    {"max_tokens": SMALL.max_output_tokens},
    {"max_completion_tokens": 4.0, "max_tokens": None},
    {"stop": []},
    {"stop": "x" * 128},
    {"stream": True, "stream_options": {"include_usage": True}},
    {"stream_options": None},
    {"logprobs": True, "top_logprobs": 0},
    {"tools": [TOOL], "tool_choice": "required"},
    {"tool_choice": "none"},
    {"tools": [TOOL], "parallel_tool_calls": False},
]
REFUSED = [
    *({"messages": [message]} for message in REFUSED_MESSAGES),
    {"model": "another"},
    {"max_tokens": SMALL.max_output_tokens + 1},
    {"max_completion_tokens": 4.5},
    {"max_tokens": 4, "max_completion_tokens": 4},
    {"n": SMALL.concurrency + 1},
    {"stop": "x" * 129},
    {"stop": ["x"] * 5},
    {"stop": [""]},
    {"stream": False, "stream_options": {"include_usage": True}},
    {"top_logprobs": 0},
    {"tool_choice": "required"},
    {"tool_choice": "sometimes"},
    {"parallel_tool_calls": False},
]
REFUSED_PROMPTS = ["", [], [""], ["x"] * (SMALL.concurrency + 1)]


@pytest.fixture(scope="module")
def document(tiny_model):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_model.tokenizer, "chat_template", HERMES_TEMPLATE)
        return create_app(tiny_model, ServerSettings(limits=SMALL)).openapi()


def fits(document, kind, body):
    schema = {"$ref": f"#/components/schemas/{kind.__name__}", "components": document["components"]}
    return jsonschema.Draft202012Validator(schema).is_valid(body)


def read(kind, body):
    return read_request(kind, json.dumps(body).encode(), ["tiny-llama"], SMALL)


@pytest.mark.parametrize("body", TAKEN)
def test_what_the_server_takes_is_allowed(document, body):
    body = {"messages": HELLO, **body}
    assert isinstance(read(ChatRequest, body), ChatRequest)
    assert fits(document, ChatRequest, body)


@pytest.mark.parametrize("body", REFUSED)
def test_what_the_server_refuses_is_forbidden(document, body):
    body = {"messages": HELLO, **body}
    with pytest.raises(Refusal):
        read(ChatRequest, body)
    assert not fits(document, ChatRequest, body)


def test_prompts_are_judged_alike(document):
    assert read(CompletionRequest, {"prompt": ["x"]}).prompts == ["x"]
    assert fits(document, CompletionRequest, {"prompt": ["x"]})
    for prompt in REFUSED_PROMPTS:
        with pytest.raises(Refusal):
            read(CompletionRequest, {"prompt": prompt})
        assert not fits(document, CompletionRequest, {"prompt": prompt})


def test_a_model_without_tools_says_so(tiny_model):
    document = create_app(tiny_model, ServerSettings(limits=SMALL)).openapi()
    assert fits(document, ChatRequest, {"messages": HELLO, "tools": None, "tool_choice": "none"})
    assert fits(document, ChatRequest, {"messages": [{**HELLO[0], "tool_calls": []}]})
    assert not fits(document, ChatRequest, {"messages": HELLO, "tools": [TOOL]})
    assert not fits(document, ChatRequest, {"messages": [{"role": "assistant", "tool_calls": [CALL]}]})


def test_every_refusal_is_told_as_json(tiny_model):
    """/metrics too, whose page is text."""
    document = create_app(tiny_model, ServerSettings(limits=SMALL, api_keys=("k",))).openapi()
    told = [
        method["responses"]["401"]["content"]
        for item in document["paths"].values()
        for method in item.values()
        if method["security"]
    ]
    assert [list(content) for content in told] == [["application/json"]] * 6
    assert document["components"]["schemas"]["ErrorBody"]["required"] == ["error"]
