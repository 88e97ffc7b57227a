"""What a request means for the model: token ids, how to decode, what keeps the answer to its form."""

import math
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from jinja2 import TemplateError

from labkit.errors import LabError
from labkit.generation import COLDEST, ChatModel, Constraint, Images, Sampling, json_grammar
from labkit.serving.answers import ChatDraft, Draft, FilteredDraft
from labkit.serving.contract import Limits, Refusal
from labkit.serving.images import read_images
from labkit.serving.reasoning import reasoning_for_template, thinking_of
from labkit.serving.scheduler import Wanted
from labkit.serving.schema import ChatRequest, Decoding
from labkit.serving.tool_calls import ToolStyle, style_of
from labkit.serving.tool_prompts import for_template, forced_schema, tools_for_template


@dataclass(frozen=True)
class Plan:
    """A request in the scheduler's terms. `where` is the parameter that the prompts came from, for errors about it.

    `images` belong to the prompt of a chat.
    """

    prompts: list[list[int]]
    where: str
    constraint: Constraint | None = None
    kept: str = ""
    draft: Callable[[int], Draft] = Draft
    samplings: Sequence[Sampling] = ()
    images: Images | None = None


class Planner:
    """Plans requests for one model within `limits`; an answer that matches `output_filter` will be cut."""

    def __init__(self, model: ChatModel, limits: Limits, output_filter: str = ""):
        self._model, self._limits, self._output_filter = model, limits, output_filter

    def plan(self, asked: Decoding) -> Plan:
        """The request in the scheduler's terms. Raises Refusal for what cannot be answered."""
        if isinstance(asked, ChatRequest):
            plan = self._chat(asked)
        else:
            plan = Plan([self._model.prompt_of(prompt) for prompt in asked.prompts], "prompt")
        first, wanted = _sampling(asked, self._limits), asked.wanted_tokens or 0
        return replace(plan, samplings=[self._fitting(len(ids), first, wanted, plan.where) for ids in plan.prompts])

    def orders(self, asked: Decoding, plan: "Plan") -> tuple[list[Wanted], list[Draft | FilteredDraft]]:
        """The answers that the plan makes, `n` for each prompt with a seed each, and what becomes of their texts."""
        adapter = asked.model if asked.model in self._model.adapters else ""
        wanted = [
            Wanted(
                ids,
                replace(sampling, seed=sampling.seed + at),
                plan.constraint and plan.constraint.fresh(),
                plan.kept,
                plan.images,
                adapter,
            )
            for ids, sampling in zip(plan.prompts, plan.samplings, strict=True)
            for at in range(asked.n or 1)
        ]
        drafts = [plan.draft(number) for number in range(len(wanted))]
        pattern = self._output_filter
        return wanted, [FilteredDraft(draft, re.compile(pattern)) for draft in drafts] if pattern else drafts

    def _chat(self, asked: ChatRequest) -> Plan:
        template = self._model.tokenizer.chat_template
        style = style_of(template)
        if style is None and (asked.tools or any(message.tool_calls for message in asked.messages)):
            raise Refusal("unsupported_parameter", "the chat template of this model knows no tools", "tools")
        tools = [tool.model_dump(exclude_none=True) for tool in asked.tools or ()]
        offered = tools if asked.tool_choice != "none" else []
        ids, images = self._chat_ids(asked, style, offered)
        constraint, begun = self._form(asked, style, offered)
        thinking = "off" if constraint else thinking_of(template, self._model.tokenizer.decode(ids[-8:]))
        most_calls = 1 if asked.parallel_tool_calls is False else math.inf
        names, used = [tool["function"]["name"] for tool in offered], style if offered else None
        return Plan(
            [ids + (self._model.text_ids(begun) if begun else [])],
            "messages",
            constraint,
            style.marker if used else "",
            lambda number: ChatDraft(number, thinking, used, names, begun, most_calls),
            images=images,
        )

    def _chat_ids(
        self, asked: ChatRequest, style: ToolStyle | None, tools: list[dict]
    ) -> tuple[list[int], Images | None]:
        images = read_images(asked.messages, self._model, self._limits)
        messages = [message.as_dict() for message in asked.messages]
        more = {"tools": tools_for_template(tools)} if tools else {}
        try:
            turned = for_template(reasoning_for_template(messages, self._model.tokenizer.chat_template), style)
            if not images:
                return self._model.prompt_ids(turned, **more), None
            return self._model.vision.prompt(self._model.prompt_text(turned, **more), images)
        except TemplateError as error:
            text = f"the model's chat template refuses these messages: {error}"
            raise Refusal("invalid_value", text, "messages") from None
        except LabError as error:
            raise Refusal("invalid_value", error.what, "messages") from None
        except (TypeError, UnicodeError, RecursionError):  # half a character, or endless nesting, in replayed arguments
            raise Refusal("invalid_value", "the messages cannot be written as text", "messages") from None

    def _form(self, asked: ChatRequest, style: ToolStyle | None, tools: list[dict]) -> tuple[Constraint | None, str]:
        """What keeps the answer to its form, and what is written for the model before it: a forced call's opening,
        whose marker is one special token in some families, which a grammar of characters would spell out."""
        where, begun, grammar = "response_format", "", ""
        try:
            if asked.forces_a_call:
                where, choice = "tools", asked.tool_choice
                forced = forced_schema(tools, choice if choice == "required" else choice.model_dump(), style)
                grammar, begun = json_grammar(forced.schema, after=forced.suffix), forced.prefix
            elif asked.json_schema is not None:
                grammar = json_grammar(asked.json_schema)
            return self._model.constraint(grammar), begun
        except LabError as error:
            raise Refusal("invalid_value", error.what, where) from None

    def _fitting(self, prompt_tokens: int, sampling: Sampling, wanted: int, where: str) -> Sampling:
        """The sampling, with max_tokens cut to the room that is left unless so many were `wanted` (0: no wish). Raises
        Refusal when the prompt, or prompt and answer, do not fit."""
        if not prompt_tokens:
            raise Refusal("invalid_value", f"the {where} has no tokens", where)
        context, most = self._model.context_length, self._limits.max_input_tokens
        if prompt_tokens > most:
            text = f"the {where} has {prompt_tokens} tokens; the limit is {most}"
            raise Refusal("context_length_exceeded", text, where)
        room = context - prompt_tokens
        if max(wanted, 1) > room:
            text = f"{prompt_tokens} tokens of {where} and {max(wanted, 1)} of answer; the context holds {context}"
            raise Refusal("context_length_exceeded", text, where)
        return replace(sampling, max_tokens=wanted or min(room, sampling.max_tokens))


def _sampling(asked: Decoding, limits: Limits) -> Sampling:
    """What the request asks for, else as many tokens as the limits allow; no seed means a fresh one.

    Temperatures under COLDEST are greedy: dividing logits by them overflows.
    """
    temperature = asked.temperature or 0.0
    return Sampling(
        max_tokens=asked.wanted_tokens or limits.max_output_tokens,
        temperature=temperature if temperature >= COLDEST else 0.0,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        seed=secrets.randbits(31) if asked.seed is None else asked.seed,
        stop=asked.stops,
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        top_logprobs=asked.scores,
    )
