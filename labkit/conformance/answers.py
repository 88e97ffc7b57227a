"""Probes of the server's pages and of plain chat answers: is each parameter honoured, not only accepted?"""

import base64
import io
from collections.abc import Callable

from labkit.conformance.findings import Outcome, Verdict
from labkit.conformance.wire import CHAT, MESSAGES, Answer, Reply, Stream, Wire, at

FEW = 5  # tokens; fewer than any answer to MESSAGES has
SEED = 7
OTHER_SEEDS = (8, 9, 10)
TOO_SHORT = "accepted; the answer is too short to see an effect"


# The server's pages


def page(wire: Wire, path: str) -> Reply:
    """GET `path`. Raises Settled unless it is there."""
    reply = wire.send("GET", path)
    if reply.status != 200:
        raise absent(reply)
    return reply


def absent(reply: Reply) -> Exception:
    settled = reply.settled()
    if reply.status in (404, 405):
        settled.outcome = (Verdict.NOT_OFFERED, str(reply.status))
    return settled


def models(wire: Wire) -> Outcome:
    cards = at(page(wire, "/v1/models").body, "data")
    names = [at(card, "id") for card in cards] if isinstance(cards, list) else []
    if wire.model not in names:
        return Verdict.WRONG, f"{wire.model} is not in the list of {len(names)}"
    return Verdict.SUPPORTED, f"{len(names)} listed, {wire.model} among them"


def health(wire: Wire) -> Outcome:
    page(wire, "/health")
    return Verdict.SUPPORTED, "200"


def metrics(wire: Wire) -> Outcome:
    series = sum(line.startswith("# TYPE ") for line in page(wire, "/metrics").text.splitlines())
    if not series:
        return Verdict.WRONG, "200, but nothing in Prometheus' text format"
    return Verdict.SUPPORTED, f"{series} metrics in Prometheus' text format"


def openapi(wire: Wire) -> Outcome:
    document = page(wire, "/openapi.json").body
    if not at(document, "openapi"):
        return Verdict.WRONG, "200, but no OpenAPI document"
    if not at(document, "paths", CHAT):
        return Verdict.PARTLY, f"the document does not describe {CHAT}"
    return Verdict.SUPPORTED, f"OpenAPI {document['openapi']} describes {CHAT}"


def completions(wire: Wire) -> Outcome:
    reply = wire.send("POST", "/v1/completions", json={"model": wire.model, "prompt": "Hello", "max_tokens": FEW})
    if reply.status != 200:
        raise absent(reply)
    text = at(reply.body, "choices", 0, "text")
    return (Verdict.SUPPORTED, "a text") if isinstance(text, str) else (Verdict.WRONG, "200 without choices[0].text")


# Messages


def content_text(wire: Wire) -> Outcome:
    from openai.types.chat import ChatCompletion
    from pydantic import ValidationError

    if not wire.plain.text:
        return Verdict.WRONG, "200 without a text in choices[0].message.content"
    try:
        ChatCompletion.model_validate(wire.plain.body)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        return Verdict.PARTLY, f"answered, but {'.'.join(map(str, problem['loc']))}: {problem['msg']}"
    return Verdict.SUPPORTED, f"{len(wire.plain.text)} characters, in the shape of OpenAI's chat.completion"


def content_parts(wire: Wire) -> Outcome:
    parts = [{"type": "text", "text": MESSAGES[0]["content"]}]
    answer = wire.answer(messages=[{"role": "user", "content": parts}])
    tokens, usual = answer.tokens("prompt"), wire.plain.tokens("prompt")
    if tokens != usual:
        return Verdict.WRONG, f"{tokens} prompt tokens, {usual} for the same content as text"
    if tokens is None and answer.text != wire.plain.text:
        return Verdict.PARTLY, "accepted; another answer than to the same content as text"
    return Verdict.SUPPORTED, f"{tokens} prompt tokens, as for text"


def image_part(wire: Wire) -> Outcome:
    """Two squares of one size and two colours: a model that sees them is given as many more tokens for one as for the
    other, while one that is given their URLs as text is not."""
    question = {"type": "text", "text": MESSAGES[0]["content"]}
    contents = ([{"type": "image_url", "image_url": {"url": url}}, question] for url in map(_square, ("red", "blue")))
    red, blue = (wire.answer(messages=[{"role": "user", "content": content}]) for content in contents)
    tokens, usual = red.tokens("prompt"), wire.plain.tokens("prompt")
    if (tokens, red.text) == (usual, wire.plain.text):
        return Verdict.IGNORED, f"prompt tokens ({tokens}) and answer are those without it"
    if tokens is None:
        return Verdict.PARTLY, "accepted; without usage it cannot be seen how the model reads it"
    if tokens != blue.tokens("prompt"):
        return Verdict.WRONG, f"{tokens} prompt tokens, {blue.tokens('prompt')} with another colour: read as text"
    return Verdict.SUPPORTED, f"{tokens} prompt tokens with it, {usual} without"


def _square(colour: str) -> str:
    """The data URL of a PNG of one colour."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (56, 56), colour).save(file, "png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def role(name: str) -> Callable[[Wire], Outcome]:
    def check(wire: Wire) -> Outcome:
        answer = wire.answer(messages=[{"role": name, "content": "Be brief."}, *MESSAGES])
        tokens, usual = answer.tokens("prompt"), wire.plain.tokens("prompt")
        if (tokens, answer.text) == (usual, wire.plain.text):
            return Verdict.IGNORED, f"prompt tokens ({tokens}) and answer are those without it"
        return Verdict.SUPPORTED, f"{tokens} prompt tokens with it, {usual} without"

    return check


def tool_message(wire: Wire) -> Outcome:
    """Two results of different length must make prompts of different length, else the model never saw them."""
    short, long = (wire.answer(messages=_tool_history(result)).tokens("prompt") for result in ("on", "on, and warm"))
    if short is None:
        return Verdict.PARTLY, "accepted; without usage it cannot be seen whether the model reads it"
    if short == long:
        return Verdict.IGNORED, f"{short} prompt tokens whatever the tool's result says"
    return Verdict.SUPPORTED, f"{short} prompt tokens, {long} with a longer result"


def _tool_history(result: str) -> list[dict]:
    call = {"id": "call_1", "type": "function", "function": {"name": "lamp", "arguments": "{}"}}
    return [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": result},
    ]


def reasoning_message(wire: Wire) -> Outcome:
    """Accepting is enough: whether old thoughts are shown to the model again is for its chat template to say."""

    def tokens(**thought: str) -> int | None:
        history = [*MESSAGES, {"role": "assistant", "content": "1, 2", **thought}, {"role": "user", "content": "And?"}]
        return wire.answer(messages=history).tokens("prompt")

    seen = tokens(reasoning_content="I count.") != tokens()
    return Verdict.SUPPORTED, f"accepted, and {'shown to' if seen else 'dropped before'} the model"


# Length and end


def limit(name: str) -> Callable[[Wire], Outcome]:
    def check(wire: Wire) -> Outcome:
        body = {key: value for key, value in wire.body().items() if key != "max_tokens"}
        answer = wire.ask({**body, name: FEW})
        tokens = answer.tokens("completion")
        if (len(answer.text) if tokens is None else tokens) > (20 * FEW if tokens is None else FEW):
            return Verdict.IGNORED, f"{FEW} tokens asked for, {tokens or 'many more'} answered"
        if answer.finish_reason != "length":
            return Verdict.PARTLY, f"{tokens} tokens, but finish_reason is {answer.finish_reason!r}"
        return Verdict.SUPPORTED, f"{tokens} tokens, finish_reason 'length'"

    return check


def stop(shape: Callable[[str], object], streamed: bool = False) -> Callable[[Wire], Outcome]:
    """A piece from the middle of the greedy answer is the stop text, so that it must come again."""

    def check(wire: Wire) -> Outcome:
        whole = wire.plain.text
        text = _middle(whole)
        if not text:
            return Verdict.PARTLY, TOO_SHORT
        asked = {"stop": shape(text)}
        return _stopped(wire.stream(**asked) if streamed else wire.answer(**asked), whole, text)

    return check


def _middle(whole: str) -> str:
    """Four characters of the middle of `whole`, or nothing where it has no such piece."""
    piece = whole[len(whole) // 2 :][:4]
    return piece if len(whole) >= 12 and piece.strip() and whole.index(piece) > 0 else ""


def _stopped(answer: Answer | Stream, whole: str, text: str) -> Outcome:
    if text in answer.text:
        if len(answer.text) >= len(whole):
            return Verdict.IGNORED, f"the answer goes on after the stop text {text!r}"
        return Verdict.WRONG, f"stopped, but the stop text {text!r} is in the answer"
    if answer.text != whole[: whole.index(text)]:
        return Verdict.PARTLY, f"no {text!r} in the answer, but not the same text before it either"
    if answer.finish_reason != "stop":
        return Verdict.PARTLY, f"cut, but finish_reason is {answer.finish_reason!r}"
    return Verdict.SUPPORTED, f"cut before {text!r}, finish_reason 'stop'"


def finish_reason(wire: Wire) -> Outcome:
    text = _middle(wire.plain.text)
    if not text:
        return Verdict.PARTLY, TOO_SHORT
    reasons = wire.answer(max_tokens=2).finish_reason, wire.answer(stop=text).finish_reason
    right = reasons == ("length", "stop")
    return Verdict.SUPPORTED if right else Verdict.WRONG, "{!r} at max_tokens, {!r} at a stop text".format(*reasons)


# Sampling


def temperature_0(wire: Wire) -> Outcome:
    """On a GPU the order of additions, and with it a close decision, may change with the load: one odd answer of three
    is "partly", three different ones are a temperature without effect."""
    if not wire.plain.text:
        return Verdict.PARTLY, TOO_SHORT
    verdict = {1: Verdict.SUPPORTED, 2: Verdict.PARTLY, 3: Verdict.IGNORED}[wire.repeats]
    return verdict, f"different answers to 3 requests: {wire.repeats}"


def temperature_2(wire: Wire) -> Outcome:
    texts = {wire.answer(temperature=2).text for _ in range(3)}
    verdict = Verdict.IGNORED if len(texts) == 1 else Verdict.SUPPORTED
    return verdict, f"different answers to 3 requests: {len(texts)}"


def seed(wire: Wire) -> Outcome:
    first, again = wire.sampled(SEED), wire.sampled(SEED)
    if first != again:
        return Verdict.IGNORED, f"seed {SEED} gave two different answers at temperature {wire.heat:g}"
    if all(wire.sampled(other) == first for other in OTHER_SEEDS):
        return Verdict.PARTLY, f"{1 + len(OTHER_SEEDS)} seeds gave one answer: a sure model, or no sampling"
    return Verdict.SUPPORTED, "the same seed gives the same answer, another seed another"


def two_choices(wire: Wire) -> Outcome:
    choices = at(wire.answer(n=2, temperature=1).body, "choices")
    indexes = [at(choice, "index") for choice in choices] if isinstance(choices, list) else []
    if len(indexes) < 2:
        return Verdict.IGNORED, f"{len(indexes)} choice for n = 2"
    return (Verdict.SUPPORTED if sorted(indexes) == [0, 1] else Verdict.WRONG), f"choices with the indexes {indexes}"


def logprobs(wire: Wire) -> Outcome:
    tokens = at(wire.answer(logprobs=True, top_logprobs=2).body, "choices", 0, "logprobs", "content")
    if not isinstance(tokens, list) or not tokens:
        return Verdict.IGNORED, "no choices[0].logprobs.content"
    values = [at(token, "logprob") for token in tokens]
    if not all(isinstance(value, int | float) and value <= 0 for value in values):
        return Verdict.WRONG, "a logprob is missing or above 0"
    if not all(len(at(token, "top_logprobs") or ()) == 2 for token in tokens):
        return Verdict.PARTLY, f"logprobs for {len(tokens)} tokens, but not 2 top_logprobs for each"
    return Verdict.SUPPORTED, f"{len(tokens)} tokens, each with 2 top_logprobs"


def penalty(name: str, value: float) -> Callable[[Wire], Outcome]:
    """A sure model's greedy answer may survive a penalty; a hot sample with a fixed seed survives none that is applied.

    Where seeds do not hold, or temperature is without effect, no such sample can be had, and nothing is concluded.
    """

    def check(wire: Wire) -> Outcome:
        changed = wire.answer(**{name: value}).text != wire.plain.text
        if changed and wire.repeats == 1:
            return Verdict.SUPPORTED, f"{value} changes the greedy answer"
        before, again = wire.sampled(SEED), wire.sampled(SEED)
        if before != again:
            return Verdict.PARTLY, "accepted; without a seed that holds, its effect cannot be told from chance"
        if wire.sampled(SEED, **{name: value}) != before:
            return Verdict.SUPPORTED, f"{value} changes a sampled answer of the same seed"
        if before == wire.plain.text:
            return Verdict.PARTLY, f"accepted; {value} changes nothing, but nor does sampling: the model is too sure"
        return Verdict.IGNORED, f"{value} changes neither the greedy answer nor a sampled one of the same seed"

    return check


def usage(wire: Wire) -> Outcome:
    counts = [wire.plain.tokens(kind) for kind in ("prompt", "completion", "total")]
    if None in counts:
        return Verdict.NOT_OFFERED, "usage lacks a count"
    prompt, completion, total = counts
    right = total == prompt + completion and min(counts) > 0
    return (Verdict.SUPPORTED if right else Verdict.WRONG), f"{prompt} + {completion}, total {total}"
