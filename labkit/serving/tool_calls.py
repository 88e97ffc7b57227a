"""Tool calls in the formats that models are taught: read from an answer, forced by a schema, put back into a prompt.

Each family writes a call in its own way, and the chat template is the only place that says which. An answer is read
while it is made, so the whole-text function is the streaming one fed once, and both give the same.
"""

import hashlib
import json
import re
import secrets
import string
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from labkit.errors import LabError

SPACE = " \t\r\n"
ID_LETTERS = string.ascii_letters + string.digits
ID_LENGTH = 9  # Mistral's templates refuse any other; no other family minds


@dataclass(frozen=True)
class ToolStyle:
    """How one family writes a call: what `head` matches, then JSON, then `tail`.

    `marker` opens a call anywhere in an answer, and may be a special token, which decoding must not skip. What `head`
    matches without it opens a call only where nothing but calls came before. `opening` matches every text that may
    yet become a head; it must match each beginning of what it matches, or streaming would depend on the pieces.
    `key` names the arguments; `separators` may stand between two calls; a forced call begins with `prefix`, and is an
    item of a list where the family is taught lists.
    """

    name: str
    marker: str
    head: re.Pattern[str]
    opening: re.Pattern[str]
    prefix: str
    tail: str = ""
    key: str = "arguments"
    separators: str = SPACE
    lists: bool = False

    def may_open(self, text: str) -> bool:
        return self.marker.startswith(text) or self.opening.fullmatch(text) is not None


HERMES = ToolStyle(
    "hermes",
    "<tool_call>",
    re.compile(r"<tool_call>\s*(?=\{)"),
    re.compile(r"<tool_call>\s*"),
    prefix="<tool_call>\n",
    tail="</tool_call>",
)
LLAMA = ToolStyle(
    "llama",
    "<|python_tag|>",
    re.compile(r'(?:<\|python_tag\|>)?\s*(?=\{\s*"(?:name|parameters|arguments|type|id)")'),
    re.compile(r'(?:<\|python_tag\|>)?\s*(?:\{\s*(?:"\w{0,10})?)?'),
    prefix="",
    key="parameters",
    separators=SPACE + ";",
)
MISTRAL = ToolStyle(
    "mistral",
    "[TOOL_CALLS]",
    re.compile(r"\[TOOL_CALLS\]\s*(?:(?=[\[{])|(?P<name>[\w.-]{1,64})(?:\[CALL_ID\]\w{1,64})?\[ARGS\]\s*(?=\{))"),
    re.compile(r"\[TOOL_CALLS\]\s*(?:[\w.-]{1,64}(?:\[[A-Z_]{0,7}(?:\]\w{0,64})?)*\s*)?"),
    prefix="[TOOL_CALLS]",
    lists=True,
)
MISTRAL_ARGS = replace(MISTRAL, name="mistral-args")  # newer: [TOOL_CALLS]name[ARGS]{...}; either answer is read


def style_of(chat_template: str | None) -> ToolStyle | None:
    """The format that `chat_template` teaches, or None: it offers no tools, or in a format that is not read here.

    Such a format is <tool_call> around XML instead of JSON (Qwen3-Coder, GLM), and Llama's list of Python calls.
    """
    text = chat_template or ""
    if not re.search(r"\btools\b", text):
        return None
    if MISTRAL.marker in text:
        return MISTRAL_ARGS if "[ARGS]" in text else MISTRAL
    if HERMES.marker in text:
        return HERMES if "arguments" in text and "<function=" not in text and "<arg_key>" not in text else None
    family = LLAMA.marker in text or "ipython" in text
    return LLAMA if family and re.search(r'"parameters\\?":', text) else None


@dataclass(frozen=True)
class ToolCall:
    """One call. `arguments` is the text of a JSON object, as in OpenAI's API, written anew so that it always parses."""

    name: str
    arguments: str


@dataclass(frozen=True)
class Parsed:
    """A whole answer: its text without the calls, and the calls in order."""

    content: str
    calls: tuple[ToolCall, ...]


Event = str | ToolCall  # a piece of content, or a complete call


def parse_tool_calls(text: str, style: ToolStyle, known_names: Collection[str]) -> Parsed:
    """`text` split into content and calls. What is no valid call of a known function stays content, as it was."""
    splitter = ToolCallSplitter(style, known_names)
    events = splitter.feed(text) + splitter.end()
    content = "".join(event for event in events if isinstance(event, str))
    return Parsed(content, tuple(event for event in events if isinstance(event, ToolCall)))


class ToolCallSplitter:
    """Splits an answer into content and calls while it arrives; how it is cut into pieces changes nothing.

    Content is given out at once, except an end that may still become a call with the white space before it. A call is
    given out when its JSON and its tail are complete; a list of calls is one thing, all calls or all content.
    White space before a call, and after the last one, is dropped.
    """

    def __init__(self, style: ToolStyle, known_names: Collection[str]):
        self._style, self._known = style, frozenset(known_names)
        self._held, self._json = "", JsonExtent()
        self._fresh, self._called = True, False  # fresh: nothing came yet, or nothing since the last call

    def feed(self, piece: str) -> list[Event]:
        self._held += piece
        return self._advance(final=False)

    def end(self) -> list[Event]:
        events = self._advance(final=True)
        rest, self._held = self._held, ""  # white space only
        return [*events, rest] if rest and not (self._fresh and self._called) else events

    def _advance(self, final: bool) -> list[Event]:
        events: list[Event] = []
        while self._held:
            gap, at = self._next_opening()
            read = self._read(self._held[at:], final) if at < len(self._held) else None
            if read is None:
                events += [self._held[:gap]] if gap else []
                self._held = self._held[gap:]
                break
            calls, length = read
            content = self._held[: gap if calls else at + length]
            events += [content, *calls] if content else calls
            self._held, self._json = self._held[at + length :], JsonExtent()
            self._fresh, self._called = bool(calls), self._called or bool(calls)
        return events

    def _next_opening(self) -> tuple[int, int]:
        """Where the next call may begin: the white space before it, and its first character (or the text's end)."""
        text, style = self._held, self._style
        if self._fresh:
            rest = text.lstrip(style.separators)
            if style.head.match(rest) or style.may_open(rest):
                return 0, len(text) - len(rest)
            self._fresh = False
        at = text.find(style.marker)
        at = at if at >= 0 else len(text) - partial_length(text, style.marker)
        return len(text[:at].rstrip(SPACE)), at

    def _read(self, text: str, final: bool) -> tuple[tuple[ToolCall, ...], int] | None:
        """The calls that `text` begins with and their length; no calls and 1 for none; None when more must come."""
        head = self._style.head.match(text)
        if head is None:
            return None if self._style.may_open(text) and not final else ((), 1)
        end = self._json.end(text, head.end())
        if end is None:
            return ((), 1) if final else None
        calls = read_calls(text[head.end() : end], head.groupdict().get("name"), self._known)
        tail = self._style.tail
        rest = text[end:].lstrip(SPACE) if tail else text[end:]
        if calls and rest.startswith(tail):
            return calls, len(text) - len(rest) + len(tail)
        if calls and tail.startswith(rest):  # the JSON is complete: a tail that never comes is forgiven
            return (calls, len(text)) if final else None
        return (), 1


class JsonExtent:
    """Finds where a JSON object or list ends in a text that only grows, looking at each character once."""

    _MARKS = re.compile(r'\\.|["{}\[\]<]', re.DOTALL)

    def __init__(self):
        self._at = self._depth = 0
        self._in_string = False
        self._end: int | None = None

    def end(self, text: str, start: int) -> int | None:
        """The index after the value that begins at `start`, or None when it is not complete.

        A "<" outside of a string cannot be JSON (it is the tail, come too early) and ends the value, which is then
        refused by the JSON reader.
        """
        if self._end is not None:
            return self._end
        for mark in self._MARKS.finditer(text, max(start, self._at)):
            self._at = mark.end()
            if mark[0] == '"':
                self._in_string = not self._in_string
            elif not self._in_string and mark[0] in "{[":
                self._depth += 1
            elif not self._in_string and mark[0] in "}]<":
                self._depth -= 1
                if self._depth == 0 or mark[0] == "<":
                    self._end = self._at
                    break
        return self._end


def partial_length(text: str, marker: str) -> int:
    """How many characters at the end of `text` are a proper beginning of `marker`."""
    return next((n for n in range(len(marker) - 1, 0, -1) if text.endswith(marker[:n])), 0)


def read_calls(text: str, name: str | None, known_names: Collection[str]) -> tuple[ToolCall, ...]:
    """The calls in a JSON text: one, or a list of them, or with `name` the arguments alone. None of them on any flaw.

    Line breaks inside strings are forgiven, because small models write them. What no JSON reader must accept (NaN,
    infinite numbers, half a surrogate pair, endless nesting) is a flaw.
    """
    try:
        value = json.loads(text, strict=False)
        found = [{"name": name, "arguments": value}] if name else value if isinstance(value, list) else [value]
        calls = tuple(_call(each, known_names) for each in found)
    except (ValueError, RecursionError):
        return ()
    return calls


def _call(found: Any, known_names: Collection[str]) -> ToolCall:
    name = found.get("name") if isinstance(found, dict) else None
    if not isinstance(name, str) or name not in known_names:
        raise ValueError("not a call of a known function")
    arguments = found.get("arguments", found.get("parameters"))
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        raise ValueError("arguments are not an object")
    written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    written.encode()  # half a surrogate pair cannot be sent
    return ToolCall(name, written)


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


def new_call_id() -> str:
    """A call id that every family's template takes: 9 letters and digits."""
    return "".join(secrets.choice(ID_LETTERS) for _ in range(ID_LENGTH))


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
