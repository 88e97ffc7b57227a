"""Reasoning: <think> split from the answer, whole and in pieces, and put back where a template has a place for it."""

import random

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from labkit.layout import MODELS
from labkit.serving.reasoning import (
    Reasoning,
    ReasoningSplitter,
    reasoning_for_template,
    thinking_of,
)

# A model that may think (it writes the tag itself, or the prompt closes it for it), and one that always does.
MAY_THINK = """\
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.reasoning_content %}{{ '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}{% endif %}
{{- message.content + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}
"""
ALWAYS_THINKS = """\
{%- for message in messages %}{{ '<|' + message.role + '|>' + message.content.split('</think>')[-1] }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|><think>\\n' }}{% endif %}
"""
PLAIN = (MODELS / "mini-instruct" / "chat_template.jinja").read_text(encoding="utf-8")
QUESTION = [{"role": "user", "content": "What is 6 x 7? Do not write <think>"}]


def prompt(template, messages=QUESTION, **options):
    texts, _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=True, **options)
    return texts[0]


def test_template_and_prompt_say_how_an_answer_begins():
    assert thinking_of(ALWAYS_THINKS, prompt(ALWAYS_THINKS)) == "opened"
    assert thinking_of(MAY_THINK, prompt(MAY_THINK)) == "tagged"
    assert thinking_of(MAY_THINK, prompt(MAY_THINK, enable_thinking=False)) == "tagged"
    assert thinking_of(PLAIN, prompt(PLAIN)) == "off"
    assert thinking_of(None, "User: <think>") == "off"


@pytest.mark.parametrize(
    ("text", "thinking", "reasoning", "content"),
    [
        ("<think>\nSix sevens.\n</think>\n\n42", "tagged", "Six sevens.", "42"),
        ("\n<think>Six\n\nsevens.</think>42\n", "tagged", "Six\n\nsevens.", "42\n"),
        ("Six sevens.\n</think>\n\n42", "opened", "Six sevens.", "42"),
        ("<think>\nSix sevens.\n</think>\n\n42", "opened", "Six sevens.", "42"),
        ("<think>\n\n</think>\n\n42", "tagged", "", "42"),
        ("Six sevens are", "opened", "Six sevens are", ""),
        ("<think>Six < sevens </thi", "tagged", "Six < sevens </thi", ""),
        ("<think>", "tagged", "", ""),
        ("", "opened", "", ""),
        ("a</think>b</think> c <think>d</think>", "opened", "a", "b</think> c <think>d</think>"),
        (" 42, as <think> says </think>\n", "tagged", "", " 42, as <think> says </think>\n"),
        ("<thin ice", "tagged", "", "<thin ice"),
        ("<thin", "tagged", "", "<thin"),
        ("\n", "tagged", "", "\n"),
        ("<think>Six</think> 42\n", "off", "", "<think>Six</think> 42\n"),
    ],
)
def test_whole_answers(text, thinking, reasoning, content):
    assert streamed([text], thinking) == (reasoning, content)
    assert streamed(list(text), thinking) == (reasoning, content)


def streamed(pieces, thinking):
    splitter = ReasoningSplitter(thinking)
    events = [event for piece in pieces for event in splitter.feed(piece)] + splitter.end()
    assert all(event.text if isinstance(event, Reasoning) else event for event in events)
    kinds = [isinstance(event, Reasoning) for event in events]
    assert kinds == sorted(kinds, reverse=True), "reasoning after content"
    return (
        "".join(event.text for event in events if isinstance(event, Reasoning)),
        "".join(event for event in events if isinstance(event, str)),
    )


@pytest.mark.parametrize("thinking", ["off", "tagged", "opened"])
def test_every_way_of_cutting_gives_the_same(thinking):
    rng = random.Random(thinking)
    parts = ["<think>", "</think>", "<thi", "</th", "<", ">", " ", "\n", "six", "sieben \u00fc"]
    for _ in range(3000):
        text = "".join(rng.choices(parts, k=rng.randint(0, 8)))
        at = sorted(rng.choices(range(len(text) + 1), k=rng.randint(0, 6)))
        pieces = [text[start:end] for start, end in zip([0, *at], [*at, len(text)], strict=True)]
        assert streamed(pieces, thinking) == streamed(list(text), thinking) == streamed([text], thinking), text


def test_pieces_go_out_at_once_except_what_may_be_a_tag():
    splitter = ReasoningSplitter("tagged")
    assert splitter.feed("<thi") == []
    assert splitter.feed("nk>\nSix ") == [Reasoning("Six")]
    assert splitter.feed("sevens.\n</thi") == [Reasoning(" sevens.")]
    assert splitter.feed("s. <") == [Reasoning("\n</this.")]
    assert splitter.feed("/think>\n") == []
    assert splitter.feed("\n42") == ["42"]
    assert splitter.feed(" <think> \n") == [" <think> \n"]
    assert splitter.end() == []


def test_a_piece_with_everything_in_it():
    splitter = ReasoningSplitter("opened")
    assert splitter.feed("Six.</think>42") == [Reasoning("Six."), "42"]


def test_reasoning_in_the_history_goes_where_the_template_has_a_place():
    history = [*QUESTION, {"role": "assistant", "content": "42", "reasoning_content": "Six sevens."}, *QUESTION]
    assert "<think>\nSix sevens.\n</think>\n\n42" in prompt(MAY_THINK, reasoning_for_template(history, MAY_THINK))
    for template in (ALWAYS_THINKS, PLAIN, None):
        assert reasoning_for_template(history, template)[1] == {"role": "assistant", "content": "42"}
    assert history[1]["reasoning_content"] == "Six sevens."
