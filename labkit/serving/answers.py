"""From what a job makes to what OpenAI's API says: one object, or a stream of chunks that add up to it.

Both come from the same deltas, so text and finish_reason cannot differ between them.
"""

import json
import math
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from fastapi.sse import format_sse_event

from labkit.generation import Completion, TokenScore
from labkit.serving.contract import Refusal
from labkit.serving.jobs import Job
from labkit.serving.reasoning import Reasoning, ReasoningSplitter, Thinking
from labkit.serving.scheduler import Piece
from labkit.serving.tool_calls import ToolCall, ToolCallSplitter, ToolStyle, new_call_id

Delta = dict  # what one chunk adds to a message: content, reasoning_content, tool_calls


@dataclass
class Step:
    """What one item of a job adds to one choice."""

    number: int
    deltas: list[Delta]
    scores: list[TokenScore] = field(default_factory=list)
    finish_reason: str | None = None


class Draft:
    """Choice number `number` in the making: text goes in, deltas come out."""

    def __init__(self, number: int):
        self.number = number

    def feed(self, piece: Piece) -> Step:
        return Step(self.number, self._deltas(piece.text), list(piece.scores))

    def finish(self, done: Completion) -> Step:
        """What was still held back, and the finish reason."""
        return Step(self.number, [], finish_reason=done.finish_reason)

    def _deltas(self, text: str) -> list[Delta]:
        return [{"content": text}] if text else []


class ChatDraft(Draft):
    """A message whose text may hold reasoning and, in `style`, calls of the functions `names`.

    `begun` is the opening of a call that was written for the model; calls after `most_calls` are left out.
    """

    def __init__(
        self,
        number: int,
        thinking: Thinking,
        style: ToolStyle | None,
        names: Collection[str],
        begun: str = "",
        most_calls: float = math.inf,
    ):
        super().__init__(number)
        self._reasoning = ReasoningSplitter(thinking)
        self._tools = ToolCallSplitter(style, names) if style else None
        self._calls, self._most_calls = 0, most_calls
        if begun:
            self._tools.feed(begun)

    def finish(self, done: Completion) -> Step:
        deltas = self._parts(self._reasoning.end())
        deltas += self._told(self._tools.end() if self._tools else [])
        reason = "tool_calls" if self._calls and done.finish_reason == "stop" else done.finish_reason
        return Step(self.number, deltas, finish_reason=reason)

    def _deltas(self, text: str) -> list[Delta]:
        return self._parts(self._reasoning.feed(text))

    def _parts(self, events: Sequence[str | Reasoning]) -> list[Delta]:
        deltas: list[Delta] = []
        for event in events:
            if isinstance(event, Reasoning):
                deltas.append({"reasoning_content": event.text})
            else:
                deltas += self._told(self._tools.feed(event) if self._tools else [event])
        return deltas

    def _told(self, parts: Sequence[str | ToolCall]) -> list[Delta]:
        return [self._delta(part) for part in parts if isinstance(part, str) or self._calls < self._most_calls]

    def _delta(self, event: str | ToolCall) -> Delta:
        if isinstance(event, str):
            return {"content": event}
        function = {"name": event.name, "arguments": event.arguments}
        self._calls += 1
        call = {"index": self._calls - 1, "id": new_call_id(), "type": "function", "function": function}
        return {"tool_calls": [call]}


class FilteredDraft:
    """A draft that gives nothing out until it is whole, and then only when `pattern` is not found in it.

    A filter that let pieces pass could not take back the beginning of what it was to keep in.
    """

    def __init__(self, draft: Draft, pattern: re.Pattern[str]):
        self.number, self._draft, self._pattern = draft.number, draft, pattern
        self._deltas: list[Delta] = []
        self._scores: list[TokenScore] = []

    def feed(self, piece: Piece) -> Step:
        self._keep(self._draft.feed(piece))
        return Step(self.number, [])

    def finish(self, done: Completion) -> Step:
        last = self._draft.finish(done)
        self._keep(last)
        text = {name: "".join(d.get(name, "") for d in self._deltas) for name in ("content", "reasoning_content")}
        calls = [call["function"]["arguments"] for delta in self._deltas for call in delta.get("tool_calls", ())]
        if any(self._pattern.search(part) for part in (*text.values(), *calls)):
            return Step(self.number, [], finish_reason="content_filter")
        return Step(self.number, self._deltas, self._scores, last.finish_reason)

    def _keep(self, step: Step) -> None:
        self._deltas += step.deltas
        self._scores += step.scores


class Usage:
    """Tokens of a request: each prompt's once, and those of all its answers, also of one that is never finished."""

    def __init__(self, prompt_tokens: int, answers: int):
        self.prompt_tokens, self.first_token_seconds = prompt_tokens, 0.0
        self._made = [0] * answers

    @property
    def completion_tokens(self) -> int:
        return sum(self._made)

    def add(self, number: int, item: Piece | Completion) -> None:
        if isinstance(item, Piece):
            self._made[number] += item.tokens
        else:
            self._made[number] = item.completion_tokens
            self.first_token_seconds = self.first_token_seconds or item.first_token_seconds

    def body(self) -> dict:
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": total,
        }


class Reply:
    """The reply to one request: `whole` or `events`. `drafts` are its choices, `form` is how the API writes them."""

    def __init__(
        self,
        form: "Form",
        model: str,
        revision: str,
        drafts: list[Draft | FilteredDraft],
        prompt_tokens: int,
        include_usage: bool,
    ):
        self.id, self.usage = f"{form.prefix}-{secrets.token_hex(12)}", Usage(prompt_tokens, len(drafts))
        self.finish_reasons: list[str] = []
        self._form, self._drafts, self._include_usage = form, drafts, include_usage
        self._head = {"created": int(time.time()), "model": model, "system_fingerprint": revision}

    async def whole(self, job: Job) -> dict:
        choices = [self._form.choice(number) for number in range(len(self._drafts))]
        async for step in self._steps(job):
            self._form.add(choices[step.number], step)
        head = {"id": self.id, "object": self._form.kind, **self._head}
        return {**head, "choices": choices, "usage": self.usage.body()}

    async def events(self, job: Job, failure: Callable[[Exception], Refusal]) -> AsyncIterator[bytes]:
        """Server-sent events: the pieces, the finish reasons, the usage when asked for, [DONE].

        The status is already sent, so a failure after the first event is an event with an error, and no [DONE].
        """
        for number in range(len(self._drafts)):
            for choice in self._form.opening(number):
                yield self._event(choice)
        try:
            async for step in self._steps(job):
                for choice in self._form.chunks(step):
                    yield self._event(choice)
        except Exception as error:
            refusal = error if isinstance(error, Refusal) else failure(error)
            yield error_event(refusal)
            return
        if self._include_usage:
            yield self._event(None, usage=self.usage.body())
        yield format_sse_event(data_str="[DONE]")

    async def _steps(self, job: Job) -> AsyncIterator[Step]:
        async for number, item in job.items():
            self.usage.add(number, item)
            if isinstance(item, Piece):
                yield self._drafts[number].feed(item)
            else:
                last = self._drafts[number].finish(item)
                self.finish_reasons.append(last.finish_reason)
                yield last

    def _event(self, choice: dict | None, usage: dict | None = None) -> bytes:
        more = {"usage": usage} if self._include_usage else {}
        body = {"id": self.id, "object": self._form.chunk_kind, **self._head, "choices": [choice] if choice else []}
        return format_sse_event(data_str=json.dumps(body | more))


def error_event(refusal: Refusal) -> bytes:
    return format_sse_event(data_str=json.dumps(refusal.body()))


class ChatForm:
    """/v1/chat/completions: a message that deltas add to."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, number: int) -> dict:
        message = {"role": "assistant", "content": ""}
        return {"index": number, "message": message, "logprobs": None, "finish_reason": None}

    def add(self, choice: dict, step: Step) -> None:
        message = choice["message"]
        for delta in step.deltas:
            for name in ("content", "reasoning_content"):
                if name in delta:
                    message[name] = (message.get(name) or "") + delta[name]
            if calls := delta.get("tool_calls"):
                kept = [{key: call[key] for key in call if key != "index"} for call in calls]
                message["tool_calls"] = message.get("tool_calls", []) + kept
        if step.scores:
            choice["logprobs"] = choice["logprobs"] or {"content": [], "refusal": None}
            choice["logprobs"]["content"] += [score_body(score) for score in step.scores]
        if step.finish_reason:
            choice["finish_reason"] = step.finish_reason
            if message.get("tool_calls") and not message["content"]:
                message["content"] = None

    def opening(self, number: int) -> list[dict]:
        return [self._chunk(number, {"role": "assistant", "content": ""})]

    def chunks(self, step: Step) -> Iterator[dict]:
        scores = {"content": [score_body(score) for score in step.scores], "refusal": None} if step.scores else None
        for delta in step.deltas or ([{}] if scores else []):
            yield self._chunk(step.number, delta, scores)
            scores = None
        if step.finish_reason:
            yield self._chunk(step.number, {}, None, step.finish_reason)

    def _chunk(self, number: int, delta: Delta, scores: dict | None = None, reason: str | None = None) -> dict:
        return {"index": number, "delta": delta, "logprobs": scores, "finish_reason": reason}


class TextForm:
    """/v1/completions: a text that goes on, and log-probabilities as lists of equal length."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def choice(self, number: int) -> dict:
        return {"index": number, "text": "", "logprobs": None, "finish_reason": None}

    def add(self, choice: dict, step: Step) -> None:
        for name, values in (self._scores(step) or {}).items():
            choice["logprobs"] = choice["logprobs"] or {}
            choice["logprobs"].setdefault(name, []).extend(values)
        choice["text"] += self._text(step)
        choice["finish_reason"] = step.finish_reason or choice["finish_reason"]

    def opening(self, number: int) -> list[dict]:
        return []

    def chunks(self, step: Step) -> Iterator[dict]:
        text, scores = self._text(step), self._scores(step)
        if text or scores or step.finish_reason:
            yield {"index": step.number, "text": text, "logprobs": scores, "finish_reason": step.finish_reason}

    def _text(self, step: Step) -> str:
        return "".join(delta["content"] for delta in step.deltas)

    def _scores(self, step: Step) -> dict | None:
        if not step.scores:
            return None
        return {
            "tokens": [score.text for score in step.scores],
            "token_logprobs": [score.logprob for score in step.scores],
            "top_logprobs": [dict(reversed(score.likeliest)) for score in step.scores],
            "text_offset": [score.offset for score in step.scores],
        }


Form = ChatForm | TextForm


def score_body(score: TokenScore) -> dict:
    likeliest = [_token_body(text, logprob) for text, logprob in score.likeliest]
    return {**_token_body(score.text, score.logprob), "top_logprobs": likeliest}


def _token_body(text: str, logprob: float) -> dict:
    broken = "\ufffd" in text  # half a character: the tokenizer does not say which bytes
    return {"token": text, "logprob": logprob, "bytes": None if broken else list(text.encode("utf-8"))}
