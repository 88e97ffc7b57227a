"""Probes of a client's mistakes, and of clients that leave: none may cost the server more than a clear answer."""

import contextlib
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx2

from labkit.conformance.findings import Outcome, Settled, TimedOut, Verdict
from labkit.conformance.wire import CHAT, Answer, Reply, Wire, at
from labkit.endpoint import auth_headers

ERROR_FIELDS = ("message", "type", "param", "code")
LONG_PROMPTS = (600, 20_000, 150_000)  # words, each at least one token; the next is sent when one is answered
STORY = [{"role": "user", "content": "Write a long story."}]
LONG_ANSWERS = (512, 128, 32)  # tokens; the first that the server allows
CLIENTS, MOST_PATIENCE = 4, 0.5  # clients that ask at once, and the seconds after which they leave
VISIBLE_SECONDS = 0.2  # a wait shorter than this is noise


def judge(reply: Reply, right: tuple[int, ...] = (400,)) -> Outcome:
    """Was a client's mistake refused with a right status and in the shape {"error": {message, type, param, code}}?"""
    if reply.status >= 500:
        return Verdict.WRONG, f"a server's fault for a client's: {reply.said}"
    if reply.status < 300:
        return Verdict.IGNORED, f"answered with {reply.status}"
    error = at(reply.body, "error")
    missing = [key for key in ERROR_FIELDS if not isinstance(error, dict) or key not in error]
    faults = [f"{reply.status} instead of {' or '.join(map(str, right))}"] if reply.status not in right else []
    faults += [f"the error lacks {', '.join(missing)}"] if missing else []
    if faults:
        return Verdict.PARTLY, "; ".join(faults)
    return Verdict.SUPPORTED, f"{reply.status}, code {error['code']!r}, param {error['param']!r}"


def mistake(*right: int, **changes: object) -> Callable[[Wire], Outcome]:
    """A chat request that is right but for `changes`."""
    return lambda wire: judge(wire.chat(**changes), right)


def raw(content: bytes, *right: int, content_type: str = "application/json") -> Callable[[Wire], Outcome]:
    headers = {"Content-Type": content_type}
    return lambda wire: judge(wire.send("POST", CHAT, content=content, headers=headers), right)


def missing_messages(wire: Wire) -> Outcome:
    return judge(wire.send("POST", CHAT, json={"model": wire.model}))


def method(wire: Wire) -> Outcome:
    return judge(wire.send("GET", CHAT), (405, 404))


def wrong_key(wire: Wire) -> Outcome:
    reply = wire.send("GET", "/v1/models", headers={"Authorization": "Bearer not-the-key"})
    if reply.status == 200 and not auth_headers():
        return Verdict.NOT_OFFERED, "any key is answered: the server asks for none"
    return judge(reply, (401,))


def long_prompt(wire: Wire) -> Outcome:
    for words in LONG_PROMPTS:
        try:
            reply = wire.chat(messages=[{"role": "user", "content": "word " * words}], max_tokens=1)
        except TimedOut:
            return Verdict.PARTLY, f"{words} words were neither refused nor answered in time"
        if reply.status != 200:
            verdict, detail = judge(reply, (400, 413))
            return verdict, f"{words} words: {detail}"
        tokens = Answer(reply.body).tokens("prompt")
        if tokens is not None and tokens < words:
            return Verdict.IGNORED, f"{words} words became {tokens} tokens: the prompt was cut and nothing said"
    return Verdict.PARTLY, f"{words} words were answered: the context is longer than this probe"


def leave(stream: bool) -> Callable[[Wire], Outcome]:
    """Four clients ask for a long answer and leave; a server that works on for them keeps the next client waiting.

    How long it waits behind four that stay is measured too: where that is no longer than alone, nothing can be seen.
    """

    def check(wire: Wire) -> Outcome:
        tokens, patience = _long(wire)
        body = wire.body(messages=STORY, max_tokens=tokens, stream=stream)
        alone = statistics.median(_short(wire) for _ in range(3))
        with ThreadPoolExecutor(CLIENTS) as pool:
            for _ in range(CLIENTS):
                pool.submit(wire.send, "POST", CHAT, json=body)
            time.sleep(patience)
            behind = _short(wire)
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(lambda _: _abandon(wire, body, patience), range(CLIENTS)))
        after = _short(wire)
        seen = (
            f"a short request takes {alone:.2f} s, behind {CLIENTS} long ones {behind:.2f}, once they left {after:.2f}"
        )
        if behind < max(3 * alone, alone + VISIBLE_SECONDS):
            return Verdict.PARTLY, f"cannot be observed: {seen}"
        return Verdict.SUPPORTED if after < (alone + behind) / 2 else Verdict.WRONG, seen

    return check


def _short(wire: Wire) -> float:
    """Seconds of a one-token answer."""
    started = time.monotonic()
    wire.answer(max_tokens=1)
    return time.monotonic() - started


def _long(wire: Wire) -> tuple[int, float]:
    """How many tokens a long answer may have, and a quarter of the seconds that one takes, at most MOST_PATIENCE."""
    for tokens in LONG_ANSWERS:
        started = time.monotonic()
        reply = wire.chat(messages=STORY, max_tokens=tokens)
        if reply.status == 200:
            return tokens, min(MOST_PATIENCE, (time.monotonic() - started) / 4)
    raise Settled(Verdict.PARTLY, f"no long answer to leave from: {reply.said}")


def _abandon(wire: Wire, body: dict, patience: float) -> None:
    """Ask, and hang up at the first byte of a stream, or when none has come for `patience` seconds."""
    with contextlib.suppress(httpx2.HTTPError), wire.http.stream("POST", CHAT, json=body, timeout=patience) as response:
        next(response.iter_raw(), None)
