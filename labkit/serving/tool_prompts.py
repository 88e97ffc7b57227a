"""Tool calls on the way to the model: a schema that forces one, and tools and history as chat templates want them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from labkit.errors import LabError
from labkit.serving.tool_calls import ID_LENGTH, ID_LETTERS, LLAMA, MISTRAL_ARGS, ToolStyle


@dataclass(frozen=True)
class Forced:
    """What constrained decoding must produce: `prefix`, a JSON text that fits `schema`, `suffix`."""

    prefix: str
    schema: dict
    suffix: str


def forced_schema(tools: Sequence[dict], choice: str | dict, style: ToolStyle) -> Forced:
    """One call of one of `tools`, in the words of `style`. `choice` is "required", or names a function as OpenAI does.

    With several functions the newer Mistral format falls back to the list format, where the name is part of the JSON.
    Raises LabError for a function that is not there, or whose parameters are no schema of an object.
    """
    functions = [tool["function"] for tool in tools]
    if choice != "required":
        wanted = choice["function"]["name"]
        functions = [function for function in functions if function["name"] == wanted]
        if not functions:
            raise LabError(f"tool_choice names the function {wanted!r}, which is not in tools", "send it in tools")
    if not functions:
        raise LabError("tool_choice asks for a call and tools is empty", "send tools, or leave tool_choice out")
    if style is MISTRAL_ARGS and len(functions) == 1:
        return Forced(f"{style.prefix}{functions[0]['name']}[ARGS]", _parameters(functions[0]), "")
    definitions = {f"arguments_{at}": _parameters(function, at) for at, function in enumerate(functions)}
    one = {"anyOf": [_call_schema(function["name"], at, style.key) for at, function in enumerate(functions)]}
    if style.lists:
        one = {"type": "array", "items": one, "minItems": 1, "maxItems": 1}
    return Forced(style.prefix, {**one, "$defs": definitions}, f"\n{style.tail}" if style.tail else "")


def _call_schema(name: str, at: int, key: str) -> dict:
    properties = {"name": {"const": name}, key: {"$ref": f"#/$defs/arguments_{at}"}}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _parameters(function: dict, at: int | None = None) -> dict:
    """The schema of a function's arguments; none means no arguments. With `at` it lies in $defs, and so do its refs."""
    schema = function.get("parameters")
    if schema is None:
        schema = {"type": "object", "properties": {}, "additionalProperties": False}
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        what = f"the parameters of the function {function['name']!r} are not a JSON schema of an object"
        raise LabError(what, 'give {"type": "object", "properties": {...}}')
    schema = {"type": "object", **schema}
    return schema if at is None else _moved(schema, f"#/$defs/arguments_{at}")


def _moved(schema: Any, base: str) -> Any:
    """`schema` with its local references ("#", "#/...") counted from `base`, where it now lies."""
    if isinstance(schema, list):
        return [_moved(each, base) for each in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, base) for key, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        moved["$ref"] = base + reference[1:]
    return moved


def _short_id(call_id: str) -> str:
    """`call_id`, or when its form is another server's, 9 hex digits that stand for it."""
    fits = len(call_id) == ID_LENGTH and set(call_id) <= set(ID_LETTERS)
    return call_id if fits else hashlib.sha256(call_id.encode()).hexdigest()[:ID_LENGTH]


def for_template(messages: Sequence[dict], style: ToolStyle | None = None) -> list[dict]:
    """OpenAI's messages as transformers' chat templates want them.

    Arguments become objects, content is never null, an answer without calls has no tool_calls, a tool's result carries
    the function's name, and ids are short. Llama's templates take one call at a time: with that style each call is
    followed by its result. Raises LabError for arguments that are not a JSON object, and for a result without a call.
    """
    names: dict[str, str] = {}
    turned = [_turned(message, names, f"messages[{at}]") for at, message in enumerate(messages)]
    return _one_call_each(turned) if style is LLAMA else turned


def _turned(message: dict, names: dict[str, str], where: str) -> dict:
    """One message for the template. `names` are the functions called so far, by id; it grows."""
    turned = {key: value for key, value in message.items() if key != "tool_calls"}
    turned["content"] = message.get("content") or ""
    if message["role"] == "tool":
        answered = message.get("tool_call_id") or ""
        turned["tool_call_id"] = _short_id(answered)
        if turned["tool_call_id"] not in names:
            what = f"the tool message answers the call {answered!r}, which no message before it made"
            raise LabError(what, "send the assistant message with that call first", where)
        turned["name"] = names[turned["tool_call_id"]]
    if calls := message.get("tool_calls"):
        turned["tool_calls"] = [_turned_call(call, f"{where}.tool_calls[{at}]") for at, call in enumerate(calls)]
        names.update({call["id"]: call["function"]["name"] for call in turned["tool_calls"]})
    return turned


def _turned_call(call: dict, where: str) -> dict:
    function = call["function"]
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        what = f"the arguments of the call of {function['name']!r} are not a JSON object"
        raise LabError(what, "send the arguments as the server gave them", where)
    turned = {"name": function["name"], "arguments": arguments}
    return {"id": _short_id(call["id"]), "type": "function", "function": turned}


def _one_call_each(messages: list[dict]) -> list[dict]:
    results: dict[str, list[dict]] = {}
    for message in messages:
        if message["role"] == "tool":
            results.setdefault(message["tool_call_id"], []).append(message)
    turns = []
    for message in messages:
        if message["role"] == "assistant" and "tool_calls" in message:
            for call in message["tool_calls"]:
                turns += [{**message, "tool_calls": [call]}, *results.get(call["id"], [])[:1]]
                results[call["id"]] = results.get(call["id"], [])[1:]
        elif message["role"] != "tool":
            turns.append(message)
    return turns


def tools_for_template(tools: Sequence[dict]) -> list[dict]:
    """OpenAI's tools as templates want them: description and parameters always there, no `strict`, which none knows."""
    empty = {"description": "", "parameters": {"type": "object", "properties": {}}}
    turned = []
    for tool in tools:
        given = {key: value for key, value in tool["function"].items() if key != "strict" and value is not None}
        turned.append({"type": "function", "function": {"name": given["name"], **empty, **given}})
    return turned
