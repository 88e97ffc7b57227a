"""What is sent to the endpoint and what comes back, as it was on the wire: a client library would mend or hide it."""

import json
import time
from dataclasses import dataclass, field
from functools import cached_property

import httpx2

from labkit.conformance.findings import Settled, TimedOut, Verdict
from labkit.endpoint import open_http

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Count from 1 to 20."}]  # short: the smallest servers take 80 tokens
ANSWER_TOKENS = 32
REQUEST_SECONDS = 60.0
MOST_BYTES = 16 * 2**20
BUSY_TRIES, LONGEST_WAIT = 3, 60.0  # for a 429 or 503 that says when to come again, in seconds


def at(value: object, *path: str | int):
    """What stands at `path` in JSON, or None where there is no such place."""
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def parse(text: str) -> object:
    """`text` as JSON, or None."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


@dataclass(frozen=True)
class Reply:
    """One HTTP answer. `retry_after` is in seconds, 0 unless a busy server (429, 503) says when to come again."""

    status: int
    content_type: str
    text: str
    retry_after: float = 0.0

    @cached_property
    def body(self) -> object:
        return parse(self.text)

    @property
    def said(self) -> str:
        message = at(self.body, "error", "message") or at(self.body, "detail") or self.text
        return f"{self.status}: {message}"

    def settled(self) -> Settled:
        """The verdict on a well-formed request that was not answered with 200."""
        refused = 400 <= self.status < 500 or self.status == 501
        return Settled(Verdict.REFUSED if refused else Verdict.WRONG, self.said)


@dataclass(frozen=True)
class Answer:
    """A chat completion; what is missing or of a wrong type reads as None or as no text."""

    body: object

    @property
    def text(self) -> str:
        content = at(self.body, "choices", 0, "message", "content")
        return content if isinstance(content, str) else ""

    @property
    def finish_reason(self) -> str | None:
        return at(self.body, "choices", 0, "finish_reason")

    def tokens(self, kind: str) -> int | None:
        """usage's count of `kind`: prompt, completion or total."""
        count = at(self.body, "usage", f"{kind}_tokens")
        return count if isinstance(count, int) else None


@dataclass(frozen=True)
class Stream:
    """A streamed completion: the data of its events in order."""

    content_type: str
    events: tuple[str, ...]
    chunks: tuple[object, ...] = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "chunks", tuple(parse(event) for event in self.events if event != "[DONE]"))

    @property
    def pieces(self) -> list[str]:
        found = (at(chunk, "choices", 0, "delta", "content") for chunk in self.chunks)
        return [piece for piece in found if isinstance(piece, str) and piece]

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def finish_reason(self) -> str | None:
        return next((r for chunk in self.chunks[::-1] if (r := at(chunk, "choices", 0, "finish_reason"))), None)


class Wire:
    """The way to one model of one endpoint. Answers that several probes compare with are asked for once."""

    def __init__(self, base_url: str, model: str, api_key: str | None = None):
        self.model = model
        self.http = open_http(base_url, REQUEST_SECONDS, api_key)

    def send(self, method: str, path: str, **options) -> Reply:
        """One request, repeated while the server is busy and says for how long. Raises Settled when no answer comes."""
        reply = self.once(method, path, **options)
        for _ in range(BUSY_TRIES):
            if not 0 < reply.retry_after <= LONGEST_WAIT:
                break
            time.sleep(reply.retry_after)
            reply = self.once(method, path, **options)
        return reply

    def once(self, method: str, path: str, **options) -> Reply:
        """One request and its answer, whatever it is. Raises Settled when no answer comes."""
        deadline, parts, size = time.monotonic() + REQUEST_SECONDS, [], 0
        try:
            with self.http.stream(method, path, **options) as response:
                for part in response.iter_bytes():
                    parts.append(part)
                    size += len(part)
                    if time.monotonic() > deadline:
                        raise TimedOut(Verdict.WRONG, f"no end of the answer within {REQUEST_SECONDS:g} s")
                    if size > MOST_BYTES:
                        raise Settled(Verdict.WRONG, f"an answer of more than {MOST_BYTES} bytes")
                headers, status = response.headers, response.status_code
        except httpx2.TimeoutException:
            raise TimedOut(Verdict.WRONG, f"no answer within {REQUEST_SECONDS:g} s") from None
        except httpx2.HTTPError as error:
            raise Settled(Verdict.WRONG, f"no answer: {type(error).__name__}: {error}") from None
        wait = headers.get("retry-after", "") if status in (429, 503) else ""
        text = b"".join(parts).decode("utf-8", "replace")
        return Reply(status, headers.get("content-type", ""), text, float(wait) if wait.isdecimal() else 0.0)

    def body(self, **changes) -> dict:
        """The common request with `changes`: greedy, 32 tokens."""
        return {
            "model": self.model,
            "messages": MESSAGES,
            "max_tokens": ANSWER_TOKENS,
            "temperature": 0,
            **changes,
        }

    def chat(self, **changes) -> Reply:
        return self.send("POST", CHAT, json=self.body(**changes))

    def answer(self, **changes) -> Answer:
        """The answer to the common request with `changes`. Raises Settled when it is refused or fails."""
        return self.ask(self.body(**changes))

    def ask(self, body: dict) -> Answer:
        reply = self.send("POST", CHAT, json=body)
        if reply.status != 200:
            raise reply.settled()
        if not isinstance(reply.body, dict):
            raise Settled(Verdict.WRONG, "200 without a JSON object")
        return Answer(reply.body)

    def stream(self, **changes) -> Stream:
        """The streamed answer. Raises Settled when it is refused, is no stream, or breaks off with an error."""
        reply = self.chat(stream=True, **changes)
        if reply.status != 200:
            raise reply.settled()
        lines = reply.text.replace("\r\n", "\n").split("\n")
        stream = Stream(reply.content_type, tuple(line[5:].strip() for line in lines if line.startswith("data:")))
        if not stream.events:
            ignored = isinstance(reply.body, dict)
            raise Settled(Verdict.IGNORED if ignored else Verdict.WRONG, f"no events, but {reply.content_type}")
        if failure := next((found for chunk in stream.chunks if (found := at(chunk, "error"))), None):
            raise Settled(Verdict.WRONG, f"the stream broke off: {at(failure, 'message') or failure}")
        return stream

    @cached_property
    def heat(self) -> float:
        """The temperature at which even a sure model wavers, or 1 where the server takes no more than that."""
        return 2.0 if self.chat(temperature=2).status == 200 else 1.0

    def sampled(self, seed: int, **changes) -> str:
        """A text at `heat`, where a seed and even a small change of the probabilities show."""
        return self.answer(temperature=self.heat, seed=seed, **changes).text

    @cached_property
    def plain(self) -> Answer:
        return self.answer()

    @cached_property
    def repeats(self) -> int:
        """How many different texts three greedy answers have: 1 where temperature 0 does what it says."""
        return len({self.plain.text, self.answer().text, self.answer().text})

    @cached_property
    def streamed(self) -> Stream:
        return self.stream()
