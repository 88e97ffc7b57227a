"""One streamed answer while it arrives: what a reader of it sees, and when."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from labkit.benchmark.measure import open_target, time_per_token
from labkit.endpoint import refused
from labkit.errors import LabError


@dataclass(frozen=True)
class Moment:
    """A streamed answer as far as it has come, `elapsed_ms` after the request was sent.

    `ttft_ms` is None before the first text. `tokens` is the server's own count, which comes with the end: until then
    only `pieces` of text can be counted, and a piece is not a token.
    """

    text: str = ""
    pieces: int = 0
    elapsed_ms: float = 0.0
    ttft_ms: float | None = None
    tokens: int | None = None

    @property
    def ms_each(self) -> float | None:
        """The time per output token after the first; per piece until the end. None where there is no second one."""
        return time_per_token(self.elapsed_ms, self.ttft_ms, self.pieces if self.tokens is None else self.tokens)

    def later(self, piece: str, elapsed_ms: float) -> "Moment":
        return Moment(self.text + piece, self.pieces + 1, elapsed_ms, self.ttft_ms or elapsed_ms)


def watch_stream(base_url: str, prompt: str, max_tokens: int = 64, model: str | None = None) -> Iterator[Moment]:
    """The greedy answer of the server at `base_url` after each piece of text, and once more when it has ended.

    `model` is the first one that the server lists. Raises LabError when none answers, or the stream breaks off.
    """
    import openai

    target = open_target(base_url, model)
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens, "temperature": 0}
    options = {"stream": True, "stream_options": {"include_usage": True}}
    started, moment, usage = time.perf_counter(), Moment(), None
    try:
        for chunk in target.client.chat.completions.create(model=target.model, **body, **options):
            usage = chunk.usage or usage
            if piece := (chunk.choices and chunk.choices[0].delta.content) or "":
                moment = moment.later(piece, (time.perf_counter() - started) * 1000)
                yield moment
    except openai.APIStatusError as error:
        raise refused(error, target.base_url) from None
    except openai.APIError as error:
        raise LabError(f"the stream broke off: {error.message}", "look at the server's log", target.base_url) from None
    elapsed = (time.perf_counter() - started) * 1000
    yield Moment(moment.text, moment.pieces, elapsed, moment.ttft_ms, usage.completion_tokens if usage else None)
