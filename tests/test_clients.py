"""Clients as people write them: the guides' snippets with the openai client, LangChain, and Hugging Face's client.

Only the base URL and the model's name are other than in the guides. The model is tiny and knows a few answers by heart.
"""

import asyncio
import json
import time
from typing import Literal

import openai
import pydantic
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import BadRequestError, HfHubHTTPError
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI, OpenAI
from taught_model import LIMITS, teach
from tiny_server import live

MODEL = "taught-llama"
GREETING = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "Hello!"},
]
PRICE_QUESTION = {"role": "user", "content": "What is the current stock price of Apple?"}
SUM_QUESTION = {"role": "user", "content": "9.11 and 9.8, which is greater?"}
NEXT_QUESTION = {"role": "user", "content": "How many Rs are there in the word 'strawberry'?"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_stock_price",
            "description": "Get the current stock price for a given symbol.",
            "parameters": {
                "type": "object",
                "properties": {"symbol": {"type": "string", "description": "The ticker, for example AAPL"}},
                "required": ["symbol"],
            },
        },
    }
]
CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "get_stock_price", "arguments": '{"symbol": "AAPL"}'},
}
CALLED = [
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call00001", "content": "150.25"},
]
THOUGHT = {"role": "assistant", "reasoning_content": "8 tenths are more than 1.", "content": "9.8 is greater."}
LESSONS = [
    ({"messages": GREETING}, "Hello! How may I help?"),
    (
        {"messages": [PRICE_QUESTION], "tools": TOOLS},
        '<tool_call>\n{"name": "get_stock_price", "arguments": {"symbol": "AAPL"}}\n</tool_call>',
    ),
    ({"messages": [PRICE_QUESTION, *CALLED], "tools": TOOLS}, "Apple is at 150.25 dollars."),
    ({"messages": [SUM_QUESTION]}, "<think>\n8 tenths are more than 1.\n</think>\n\n9.8 is greater."),
    ({"messages": [SUM_QUESTION, THOUGHT, NEXT_QUESTION]}, "<think>\nOne, and two more.\n</think>\n\nThere are 3."),
]


@pytest.fixture(scope="module")
def url(tiny_model_folder, tmp_path_factory):
    model = teach(tiny_model_folder, tmp_path_factory.mktemp("taught") / MODEL, LESSONS)
    with live(model, LIMITS) as base_url:
        yield f"{base_url}/v1"


@pytest.fixture
def client(url):
    return OpenAI(base_url=url, api_key="none", max_retries=0)


def get_stock_price(symbol):
    return {"AAPL": 150.25, "NVDA": 120.5}[symbol]


# The guides' snippets


def test_system_and_user_messages(client):
    response = client.chat.completions.create(model=MODEL, messages=GREETING)
    assert response.choices[0].message.content == "Hello! How may I help?"
    assert response.choices[0].finish_reason == "stop"


def test_system_and_user_messages_streamed(client):
    stream = client.chat.completions.create(model=MODEL, messages=GREETING, stream=True)
    text = ""
    for chunk in stream:
        if chunk.choices[0].delta.content is not None:
            text += chunk.choices[0].delta.content
    assert text == "Hello! How may I help?"


def test_the_clients_stream_helper(client):
    with client.chat.completions.stream(model=MODEL, messages=GREETING) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
    assert text == "Hello! How may I help?"
    assert stream.get_final_completion().choices[0].message.content == text


def test_the_async_client(url):
    async def both():
        async with AsyncOpenAI(base_url=url, api_key="none") as client:
            plain = client.chat.completions.create(model=MODEL, messages=GREETING)
            stream = await client.chat.completions.create(model=MODEL, messages=GREETING, stream=True)
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return (await plain).choices[0].message.content, "".join(pieces)

    assert asyncio.run(both()) == ("Hello! How may I help?",) * 2


def test_function_calling_from_question_to_answer(client):
    messages = [PRICE_QUESTION]
    response = client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS, tool_choice="auto")
    assert response.choices[0].finish_reason == "tool_calls"
    message = response.choices[0].message
    messages.append(message)
    for tool_call in message.tool_calls:
        arguments = json.loads(tool_call.function.arguments)
        result = get_stock_price(**arguments)
        messages.append({"role": "tool", "tool_call_id": tool_call.id, "content": str(result)})
    response = client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS, tool_choice="auto")
    assert response.choices[0].message.content == "Apple is at 150.25 dollars."


def test_function_calling_streamed(client):
    stream = client.chat.completions.create(model=MODEL, messages=[PRICE_QUESTION], tools=TOOLS, stream=True)
    calls = {}
    for chunk in stream:
        for part in chunk.choices[0].delta.tool_calls or []:
            call = calls.setdefault(part.index, {"id": part.id, "name": part.function.name, "arguments": ""})
            call["arguments"] += part.function.arguments
    assert [(call["name"], json.loads(call["arguments"])) for call in calls.values()] == [
        ("get_stock_price", {"symbol": "AAPL"})
    ]
    assert calls[0]["id"]


def test_function_calling_with_a_pydantic_tool(client):
    class GetStockPrice(pydantic.BaseModel):
        """Get the current stock price for a given symbol."""

        symbol: str

    tools = [openai.pydantic_function_tool(GetStockPrice, name="get_stock_price")]
    done = client.chat.completions.parse(model=MODEL, messages=[PRICE_QUESTION], tools=tools)
    assert done.choices[0].message.tool_calls[0].function.parsed_arguments == GetStockPrice(symbol="AAPL")


def test_reasoning_is_read_and_sent_back(client):
    messages = [SUM_QUESTION]
    message = client.chat.completions.create(model=MODEL, messages=messages).choices[0].message
    assert (message.reasoning_content, message.content) == ("8 tenths are more than 1.", "9.8 is greater.")
    messages.append(
        {"role": "assistant", "reasoning_content": message.reasoning_content, "content": message.content},
    )
    messages.append(NEXT_QUESTION)
    message = client.chat.completions.create(model=MODEL, messages=messages).choices[0].message
    assert (message.reasoning_content, message.content) == ("One, and two more.", "There are 3.")


def test_reasoning_is_read_from_a_stream_and_may_be_left_out_of_the_history(client):
    messages = [SUM_QUESTION]
    reasoning_content = content = ""
    for chunk in client.chat.completions.create(model=MODEL, messages=messages, stream=True):
        if getattr(chunk.choices[0].delta, "reasoning_content", None):
            reasoning_content += chunk.choices[0].delta.reasoning_content
        elif chunk.choices[0].delta.content:
            content += chunk.choices[0].delta.content
    assert (reasoning_content, content) == ("8 tenths are more than 1.", "9.8 is greater.")
    messages += [{"role": "assistant", "content": content}, NEXT_QUESTION]
    assert client.chat.completions.create(model=MODEL, messages=messages).usage.completion_tokens > 0


def test_the_latency_benchmark(client):
    latencies, rates = [], []
    for _ in range(3):
        start = time.perf_counter()
        response = client.chat.completions.create(model=MODEL, messages=GREETING, max_tokens=5)
        latency = time.perf_counter() - start
        latencies.append(latency)
        rates.append(response.usage.completion_tokens / latency)
        assert response.usage.completion_tokens == 5
    assert min(latencies) > 0
    assert min(rates) > 0


# LangChain


def langchain(url, **more):
    return ChatOpenAI(**{"base_url": url, "api_key": "none", "model": MODEL, "max_retries": 0, **more})


class Ticket(pydantic.BaseModel):
    """What is to be done."""

    open: bool
    kind: Literal["refund", "repair"]


@tool("get_stock_price")
def price_tool(symbol: str) -> float:
    """Get the current stock price for a given symbol."""
    return get_stock_price(symbol)


def test_langchain_plain_and_streamed(url):
    messages = [SystemMessage(GREETING[0]["content"]), HumanMessage(GREETING[1]["content"])]
    plain = langchain(url).invoke(messages)
    assert plain.text == "Hello! How may I help?"
    chunks = list(langchain(url, stream_usage=True).stream(messages))
    assert "".join(chunk.text for chunk in chunks) == plain.text
    assert [c.usage_metadata for c in chunks if c.usage_metadata] == [plain.usage_metadata]
    assert asyncio.run(langchain(url).ainvoke(messages)).text == plain.text


def test_langchain_calls_a_tool_and_answers_from_its_result(url):
    model = langchain(url).bind_tools([price_tool])
    messages = [HumanMessage(PRICE_QUESTION["content"])]
    messages.append(model.invoke(messages))
    assert [(call["name"], call["args"]) for call in messages[1].tool_calls] == [
        ("get_stock_price", {"symbol": "AAPL"})
    ]
    messages += [price_tool.invoke(call) for call in messages[1].tool_calls]
    assert model.invoke(messages).text == "Apple is at 150.25 dollars."


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_structured_output(url, method):
    """Forced upon a model that was never taught this form; function_calling sends parallel_tool_calls: false."""
    model = langchain(url).with_structured_output(Ticket, method=method)
    assert isinstance(model.invoke("The pump leaks."), Ticket)


def test_langchain_tells_errors_by_their_kind(url):
    with pytest.raises(openai.NotFoundError, match="'gpt-4' is not served here"):
        langchain(url, model="gpt-4").invoke("Hello")
    with pytest.raises(openai.BadRequestError, match="the limit is 120") as error:
        langchain(url, max_tokens=10**6).invoke("Hello")
    assert error.value.param == "max_completion_tokens"
    with pytest.raises(openai.BadRequestError, match="does not honour the parameter logit_bias"):
        langchain(url, logit_bias={"1": 5}).invoke("Hello")


# Hugging Face's client, which shares no code with openai's


@pytest.fixture
def hugging_face(url):
    with InferenceClient(base_url=url, api_key="none", timeout=60) as client:
        yield client


def test_hugging_face_plain_and_streamed(hugging_face):
    plain = hugging_face.chat_completion(GREETING, model=MODEL)
    assert plain.choices[0].message.content == "Hello! How may I help?"
    assert plain.usage.completion_tokens > 0
    chunks = list(hugging_face.chat_completion(GREETING, model=MODEL, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == plain.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == plain.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_hugging_face_calls_a_tool(hugging_face, choice):
    called = hugging_face.chat_completion([PRICE_QUESTION], model=MODEL, tools=TOOLS, tool_choice=choice)
    (call,) = called.choices[0].message.tool_calls
    assert call.function.name == "get_stock_price"
    assert isinstance(json.loads(call.function.arguments)["symbol"], str)


def test_hugging_face_tells_errors_by_their_kind(hugging_face):
    with pytest.raises(BadRequestError, match="the limit is 120"):
        hugging_face.chat_completion(GREETING, model=MODEL, max_tokens=10**6)
    with pytest.raises(HfHubHTTPError, match="'gpt-4' is not served here"):
        hugging_face.chat_completion(GREETING, model="gpt-4")
