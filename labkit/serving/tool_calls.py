"""Tool calls in the formats that models are taught, read from an answer while it is made.

Each family writes a call in its own way, and the chat template is the only place that says which.
"""

import json
import re
import secrets
import string
import sys
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

SPACE = " \t\r\n"
ID_LETTERS = string.ascii_letters + string.digits
HALF_PAIR = re.compile("[\ud800-\udfff]")
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


Event = str | ToolCall  # a piece of content, or a complete call


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

    Line breaks inside strings are forgiven, because small models write them. What is valid JSON and yet not for every
    reader is written so that it is: a number beyond all floats as the last of them, half a surrogate pair as U+FFFD.
    What no reader must accept (NaN, endless nesting) is a flaw.
    """
    try:
        value = json.loads(text, strict=False, parse_float=_float)
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
    return ToolCall(name, HALF_PAIR.sub("\ufffd", written))


def _float(digits: str) -> float:
    return max(-sys.float_info.max, min(sys.float_info.max, float(digits)))


def new_call_id() -> str:
    """A call id that every family's template takes: 9 letters and digits."""
    return "".join(secrets.choice(ID_LETTERS) for _ in range(ID_LENGTH))
