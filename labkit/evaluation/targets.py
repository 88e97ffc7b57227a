"""What can be evaluated: a model in this process, or one behind an OpenAI-compatible API."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from labkit.decoding import Sampling
from labkit.endpoint import first_model, open_client, read_health, root_url
from labkit.errors import LabError
from labkit.evaluation.levers import Asked

if TYPE_CHECKING:  # a server is asked without torch
    from labkit.generation import ChatModel, Completion

CLIENTS = 4  # requests at once to a server, unless told: what `labkit serve` answers together
ROWS = 8  # cases that a model in this process decodes together, unless told
RETRIES = 2  # of the openai client, on connection errors and on 408, 409, 429 and 5xx answers
PATIENCE = 120.0  # seconds for which one case waits where a server names the time to come back
NOT_HONOURED = (400, 422)  # what a server says that does not stream, or does not know a parameter of streams


@dataclass(frozen=True)
class Reply:
    """One answer with its cost: milliseconds from request to last token, and the tokenizer's own counts.

    `ttft_ms` is the time to the first token, the whole latency for an empty answer, None where it cannot be known.
    """

    text: str
    latency_ms: float
    prompt_tokens: int
    completion_tokens: int
    ttft_ms: float | None = None


Order = tuple[Asked, Sampling]


@dataclass(frozen=True)
class Target:
    """What is evaluated: a name, the facts that identify it, and a function from what is asked to the reply.

    `concurrency` is how many requests it takes at once unless told otherwise; 1 is a target that never takes more.
    Where there is `together`, it answers several orders at once, as many as it is told, and names each by its number
    as it ends; else several threads ask.
    """

    model: str
    revision: str
    device: str
    dtype: str
    ask: Callable[[Asked, Sampling], Reply]
    backend: str = "unknown"
    concurrency: int = 1
    together: Callable[[Sequence[Order], int], Iterator[tuple[int, Reply | LabError]]] | None = None


def model_target(model: "ChatModel") -> Target:
    """A model in this process. A latency among several cases is that of a server with as many clients."""
    from labkit.generation import Chat, Completion, chat_together, json_grammar

    def grammar(asked: Asked) -> str:
        return json_grammar(asked.schema) if asked.schema else ""

    def ask(asked: Asked, sampling: Sampling) -> Reply:
        return _completed(model.chat(asked.messages, sampling, grammar(asked)))

    def together(orders: Sequence[Order], width: int) -> Iterator[tuple[int, Reply | LabError]]:
        chats = [Chat(asked.messages, sampling, grammar(asked)) for asked, sampling in orders]
        for number, ended in chat_together(model, chats, width):
            yield number, _completed(ended) if isinstance(ended, Completion) else ended

    return Target(model.name, model.revision, model.device, model.dtype, ask, model.backend, ROWS, together)


def _completed(done: "Completion") -> Reply:
    first = done.first_token_seconds * 1000
    return Reply(done.text, done.seconds * 1000, done.prompt_tokens, done.completion_tokens, first)


def endpoint_target(base_url: str, api_key: str | None = None, model: str | None = None) -> Target:
    """The model behind an OpenAI-compatible API at `base_url`, with or without /v1; the key is LABKIT_API_KEY's.

    Without `model` it is the one that the server names, or lists first. What the server does not say of itself on
    /health (only ours does) stays "unknown". Raises LabError when no server answers.

    A busy server that names the time to come back (Retry-After) is asked again for up to PATIENCE seconds. The latency
    is that of the request that was answered, without the waiting and the requests before it.
    """
    root = root_url(base_url)
    said = read_health(root, api_key=api_key)
    client = open_client(root, api_key, timeout=60, retries=RETRIES)
    endpoint = _Endpoint(client, root, model or said.get("model") or first_model(client))
    adapters = said.get("adapters")
    if isinstance(adapters, dict) and endpoint.model in adapters:
        said = {**said, "revision": adapters[endpoint.model]}
    facts = (str(said.get(key, "unknown")) for key in ("revision", "device", "dtype", "backend"))
    revision, device, dtype, backend = facts
    return Target(endpoint.model, revision, device, dtype, endpoint.ask, backend, CLIENTS)


class _Endpoint:
    """Asks for streams, which show the first token's time. A server that will not stream, or sends no usage in its
    streams, is asked for whole answers from then on: tokens are worth more than the time of the first one."""

    def __init__(self, client, root: str, model: str):
        self.model = model
        self._client, self._root, self._streams = client, root, True

    def ask(self, asked: Asked, sampling: Sampling) -> Reply:
        import openai

        body = _body(self.model, asked, sampling)
        try:
            streamed = self._streamed(body) if self._streams else None
            return streamed or self._whole(body)
        except (openai.OpenAIError, *_broken_connections()) as error:
            what = f"the server at {self._root} refused a case: {error}"
            raise LabError(what, "look at the server's log") from error

    def _streamed(self, body: dict) -> Reply | None:
        """None where the server does not stream, or told no usage."""
        import openai

        more = {"stream": True, "stream_options": {"include_usage": True}}
        try:
            response = _patiently(lambda: self._create(**body, **more))
        except openai.APIStatusError as error:
            if error.status_code in NOT_HONOURED:
                return None
            raise
        return _read_stream(response)

    def _whole(self, body: dict) -> Reply:
        reply = _reply(_patiently(lambda: self._create(**body)), self._root)
        self._streams = False  # only now: a case that is refused in either way says nothing of streams
        return reply

    def _create(self, **body):
        return self._client.chat.completions.with_raw_response.create(**body)


def _broken_connections() -> list[type[Exception]]:
    """What a stream that breaks off raises in openai before 3.0: an error of the HTTP library below, unwrapped."""
    return [sys.modules[name].HTTPError for name in ("httpx", "httpx2") if name in sys.modules]


def _body(model: str, asked: Asked, sampling: Sampling) -> dict:
    body = {"model": model, "messages": list(asked.messages), "max_tokens": sampling.max_tokens}
    body |= {"temperature": sampling.temperature, "seed": sampling.seed}
    if sampling.top_p != 1.0:
        body["top_p"] = sampling.top_p
    if asked.schema:
        form = {"name": "form", "schema": asked.schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    return body


def _read_stream(response) -> Reply | None:
    """The reply in a stream; None where it has no usage, or is no stream.

    `elapsed` is the client's own measure from the request to the end of the body. The moment of the first text is told
    from that end backwards, so that a request which the client had to repeat is not in it.
    """
    pieces, usage, first = [], None, None
    try:
        for chunk in response.parse():
            delta = chunk.choices[0].delta if chunk.choices else None
            if delta and (delta.content or getattr(delta, "reasoning_content", None)):
                first = first or time.perf_counter()
                pieces.append(delta.content or "")
            usage = chunk.usage or usage
        ended, took = time.perf_counter(), response.elapsed.total_seconds() * 1000
        ttft = took if first is None else max(0.0, took - (ended - first) * 1000)
        return Reply("".join(pieces), took, usage.prompt_tokens, usage.completion_tokens, ttft)
    except (AttributeError, IndexError, TypeError, ValueError):
        return None


def _patiently(request: Callable):
    """What `request` returns, asked again as long as the server names a time to come back within PATIENCE seconds."""
    import openai

    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return request()
        except openai.APIStatusError as error:
            wait = _retry_after(error)
            if wait is None or time.monotonic() + wait > deadline:
                raise
            time.sleep(wait)


def _retry_after(error) -> float | None:
    """The seconds that a busy server names, or None: a date, or no word of when, is left to the openai client."""
    try:
        return max(0.1, float(error.response.headers["retry-after"])) if error.status_code in (429, 503) else None
    except (KeyError, ValueError):
        return None


def _reply(response, root: str) -> Reply:
    try:
        done = response.parse()
        text, usage = done.choices[0].message.content or "", done.usage
        took = response.elapsed.total_seconds() * 1000
        return Reply(text, took, usage.prompt_tokens, usage.completion_tokens)
    except (AttributeError, IndexError, TypeError):  # a web page, or JSON of another shape
        what = f"the server at {root} answered a case without choices or without usage"
        raise LabError(what, "check that --base-url is an OpenAI-compatible server") from None
