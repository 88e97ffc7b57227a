"""Probes of constrained answers and tools. The prompt asks for something else, so only a constraint can make it fit."""

from labkit.conformance.findings import Outcome, Verdict
from labkit.conformance.wire import Answer, Wire, at, parse

AGAINST = [{"role": "user", "content": "Say hello. Do not use JSON."}]  # OpenAI wants the word JSON in the messages
COLOURS, COUNTS = ("red", "green"), (1, 2, 3)
SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"type": "string", "enum": list(COLOURS)},
        "count": {"type": "integer", "enum": list(COUNTS)},
    },
    "required": ["colour", "count"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "probe", "strict": True, "schema": SCHEMA}}
TOOL = {"type": "function", "function": {"name": "paint", "description": "Paint lamps.", "parameters": SCHEMA}}


def fits(value: object) -> bool:
    """Whether `value` satisfies SCHEMA; by hand, because it is three lines and a validator is a package."""
    if not isinstance(value, dict) or set(value) != {"colour", "count"}:
        return False
    return value["colour"] in COLOURS and type(value["count"]) is int and value["count"] in COUNTS


def json_object(wire: Wire) -> Outcome:
    answer = wire.answer(messages=AGAINST, max_tokens=128, response_format={"type": "json_object"})
    if isinstance(parse(answer.text), dict):
        return Verdict.SUPPORTED, "the answer parses as an object"
    return _not_json(answer, "object")


def json_schema(wire: Wire) -> Outcome:
    answer = wire.answer(messages=AGAINST, response_format=FORMAT)
    value = parse(answer.text)
    if value is None:
        return _not_json(answer, "schema")
    return (Verdict.SUPPORTED, answer.text) if fits(value) else (Verdict.IGNORED, f"does not fit: {answer.text}")


def _not_json(answer: Answer, kind: str) -> Outcome:
    if answer.finish_reason == "length" and answer.text.lstrip().startswith("{"):
        return Verdict.PARTLY, f"begins as an {kind} and is cut off by max_tokens"
    return Verdict.IGNORED, f"no JSON: {answer.text[:60]!r}"


def tools(wire: Wire) -> Outcome:
    """Without a call, a longer prompt shows that the model was at least told of the tool."""
    answer = wire.answer(tools=[TOOL], tool_choice="auto")
    if at(answer.body, "choices", 0, "message", "tool_calls"):
        return _call(answer)
    tokens, usual = answer.tokens("prompt"), wire.plain.tokens("prompt")
    if tokens is None:
        return Verdict.PARTLY, "accepted, no call; without usage it cannot be seen whether the model was told"
    if tokens == usual:
        return Verdict.IGNORED, f"{tokens} prompt tokens with and without the tool: the model is not told of it"
    return Verdict.SUPPORTED, f"no call; {tokens} prompt tokens with the tool, {usual} without"


def forced_tool(wire: Wire) -> Outcome:
    choice = {"type": "function", "function": {"name": "paint"}}
    answer = wire.answer(messages=AGAINST, tools=[TOOL], tool_choice=choice, max_tokens=64)
    return _call(answer)


def _call(answer: Answer) -> Outcome:
    call = at(answer.body, "choices", 0, "message", "tool_calls", 0)
    if call is None:
        return Verdict.IGNORED, f"no call, but {answer.text[:60]!r}"
    name, arguments = at(call, "function", "name"), at(call, "function", "arguments")
    if name != "paint" or not isinstance(arguments, str):
        return Verdict.WRONG, f"the call names {name!r}, its arguments are a {type(arguments).__name__}"
    value = parse(arguments)
    if value is None and answer.finish_reason == "length":
        return Verdict.PARTLY, "a call, its arguments cut off by max_tokens"
    if value is None:
        return Verdict.WRONG, f"a call whose arguments are no JSON: {arguments[:60]!r}"
    return (Verdict.SUPPORTED if fits(value) else Verdict.PARTLY), f"paint({arguments})"
