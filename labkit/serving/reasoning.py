"""Thinking models: what stands between <think> and </think> is the reasoning, the rest is the answer.

The chat template says whether a model thinks, and the prompt whether its answer begins inside the thinking.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from labkit.serving.tool_calls import partial_length

OPEN, CLOSE = "<think>", "</think>"

Thinking = Literal["off", "tagged", "opened"]


def thinking_of(chat_template: str | None, prompt_text: str) -> Thinking:
    """How an answer to `prompt_text` (the rendered prompt) begins.

    "off": this model's template knows no thinking. "opened": the prompt ends with <think>. "tagged": the model writes
    <think> itself, or does not think this time.
    """
    if not chat_template or (OPEN not in chat_template and CLOSE not in chat_template):
        return "off"
    return "opened" if prompt_text.rstrip().endswith(OPEN) else "tagged"


@dataclass(frozen=True)
class Reasoning:
    """A piece of the thinking."""

    text: str


Event = str | Reasoning  # a piece of content, or of the thinking


class ReasoningSplitter:
    """Splits an answer while it arrives; how it is cut into pieces changes nothing.

    Held back is only what may still become a tag, and white space that may turn out to stand before </think>.
    """

    def __init__(self, thinking: Thinking):
        self._opened = thinking == "opened"
        self._step = self._plain if thinking == "off" else self._begin
        self._held, self._began = "", False

    def feed(self, piece: str) -> list[Event]:
        self._held += piece
        return self._advance(final=False)

    def end(self) -> list[Event]:
        return self._advance(final=True)

    def _advance(self, final: bool) -> list[Event]:
        """Run the present step, and the next ones for as long as a step hands over to another."""
        events: list[Event] = []
        step = None
        while step != self._step:
            step = self._step
            events += step(final)
        return events

    def _begin(self, final: bool) -> list[Event]:
        """Before anything else: the tag, if there is one. A model may repeat the tag that the prompt opened."""
        text = self._held.lstrip()
        if text.startswith(OPEN):
            self._held, self._step = text[len(OPEN) :], self._think
        elif final or not OPEN.startswith(text):
            self._step = self._think if self._opened else self._plain
        return []

    def _think(self, final: bool) -> list[Event]:
        if not self._began:
            self._held = self._held.lstrip()
        thought, tag, rest = self._held.partition(CLOSE)
        if tag:
            self._step = self._after
        else:
            partial = 0 if final else partial_length(thought, CLOSE)
            rest = thought[len(thought[: len(thought) - partial].rstrip()) :]
            thought = thought[: len(thought) - len(rest)]
        self._held = rest
        thought = thought.rstrip()
        self._began = self._began or bool(thought)
        return [Reasoning(thought)] if thought else []

    def _after(self, final: bool) -> list[Event]:
        self._held = self._held.lstrip()
        if self._held:
            self._step = self._plain
        return []

    def _plain(self, final: bool) -> list[Event]:
        piece, self._held = self._held, ""
        return [piece] if piece else []


def reasoning_for_template(messages: Sequence[dict], chat_template: str | None) -> list[dict]:
    """`messages` with reasoning_content kept where the template has a place for it, and dropped where it has none."""
    if "reasoning_content" in (chat_template or ""):
        return list(messages)
    return [{key: value for key, value in message.items() if key != "reasoning_content"} for message in messages]
