"""A chat template as the strings that Foundry Local's inference_model.json holds, one for each role.

A chat template is a program; these are strings with one gap, {Content}. They are found by rendering: short chats are
put through the template, and what a turn adds to the text is that turn's string. What a program does and strings cannot
(a system message that is written into the user's turn, as Mistral's and Gemma's are) is left out, never bent.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jinja2
from transformers import PreTrainedTokenizerBase

from labkit.errors import LabError

CONTENT = "{Content}"
Message = Mapping[str, str]
Render = Callable[[Sequence[Message], bool], str]  # the chat, and whether the answer is begun

# What no template trims, changes or splits, and no text holds.
_SYSTEM, _USER, _ANSWER, _SECOND = ("qzxSystemzxq", "qzxUserzxq", "qzxAnswerzxq", "qzxSecondzxq")

# Chats that must come out the same from the strings as from the template.
PROBES = (
    ({"role": "user", "content": "What is the capital of France?"},),
    (
        {"role": "user", "content": "Hi {there}, 2 < 3 & 4 > 1"},
        {"role": "assistant", "content": "Hello.\nTwo lines."},
        {"role": "user", "content": "Größe? 你好 🙂"},
    ),
    ({"role": "system", "content": "Answer briefly."}, {"role": "user", "content": "Why?"}),
    (
        {"role": "system", "content": "You are a clerk."},
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "Two"},
    ),
)


@dataclass(frozen=True)
class PromptTemplate:
    """`prompt` is a single question, ready to be answered; `user` and `assistant` are what such a turn adds.

    `system` opens the chat; None where the template has no place for one before the user's turn.
    """

    prompt: str
    user: str
    assistant: str
    system: str | None = None

    def as_dict(self) -> dict[str, str]:
        found = {"system": self.system, "user": self.user, "assistant": self.assistant, "prompt": self.prompt}
        return {name: text for name, text in found.items() if text is not None}

    def render(self, messages: Sequence[Message]) -> str:
        """The text of a chat up to where the answer begins. Raises LabError for a role that has no string."""
        opening, generation = self.prompt.split(self.user)
        if messages[0]["role"] != "system":
            parts = [opening]
        elif self.system is None:
            raise LabError("this prompt template has no place for a system message", "put it into the user's message")
        else:
            parts = [self.system.replace(CONTENT, messages[0]["content"])]
        turns = messages[1:] if messages[0]["role"] == "system" else messages
        parts += [self.as_dict()[turn["role"]].replace(CONTENT, turn["content"]) for turn in turns]
        return "".join([*parts, generation])


def derive_template(tokenizer: PreTrainedTokenizerBase) -> PromptTemplate:
    """The strings of the tokenizer's chat template. Raises LabError where it has none, or strings cannot say it."""
    if not tokenizer.chat_template:
        raise LabError("the tokenizer has no chat template", "write one into chat_template.jinja beside it")

    def render(messages: Sequence[Message], begun: bool) -> str:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=begun)

    return template_of(render)


def template_of(render: Render) -> PromptTemplate:
    """As `derive_template`, of any function that renders chats."""
    user, answer = {"role": "user", "content": _USER}, {"role": "assistant", "content": _ANSWER}
    begun = render([user], True)
    one, two = render([user], False), render([user, answer], False)
    three = render([user, answer, {"role": "user", "content": _SECOND}], False)
    if not (begun.startswith(one) and two.startswith(one) and three.startswith(two)):
        raise _cannot("an earlier turn is written otherwise once a later one follows")
    turn = three[len(two) :].replace(_SECOND, CONTENT)
    if turn.count(CONTENT) != 1:
        raise _cannot("a turn's text stands in it changed, or not once")
    if not one.endswith(turn.replace(CONTENT, _USER)):
        raise _cannot("the first question is written otherwise than the second")
    template = PromptTemplate(
        prompt=begun.replace(_USER, CONTENT),
        user=turn,
        assistant=two[len(one) :].replace(_ANSWER, CONTENT),
        system=_system(render, turn.replace(CONTENT, _USER)),
    )
    for text in template.as_dict().values():
        if text.count(CONTENT) != 1:
            raise _cannot("a turn's text stands in it changed, or not once")
    if differing := differences(template, render):
        raise _cannot(f"a chat comes out otherwise: {differing[0]!r}")
    return template


def differences(template: PromptTemplate, render: Render) -> list[str]:
    """The chats of PROBES that the strings write otherwise than the template, each as the strings write it."""
    probes = [probe for probe in PROBES if template.system is not None or probe[0]["role"] != "system"]
    return [template.render(probe) for probe in probes if template.render(probe) != render(probe, True)]


def _system(render: Render, turn: str) -> str | None:
    """What a system message writes before the user's turn, `turn`; None where it stands elsewhere or is refused."""
    try:
        text = render([{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _USER}], False)
    except jinja2.TemplateError:
        return None
    before = text.removesuffix(turn)
    return before.replace(_SYSTEM, CONTENT) if before != text and before.count(_SYSTEM) == 1 else None


def _cannot(why: str) -> LabError:
    what = f"the chat template cannot be said in strings for each role: {why}"
    return LabError(what, "register the model with the Foundry Local SDK, which reads the template itself")
