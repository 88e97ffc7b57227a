"""Tool calls: three families' formats, read whole and in pieces, forced by a schema, and put back into a prompt."""

import json
import random
import string
import sys

import jsonschema
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from labkit.errors import LabError
from labkit.layout import MODELS
from labkit.serving.tool_calls import (
    HERMES,
    LLAMA,
    MISTRAL,
    MISTRAL_ARGS,
    ToolCall,
    ToolCallSplitter,
    new_call_id,
    style_of,
)
from labkit.serving.tool_prompts import for_template, forced_schema, tools_for_template

STYLES = [HERMES, LLAMA, MISTRAL, MISTRAL_ARGS]
KNOWN = {"leave_days", "now"}

# Chat templates that hold what the families' own ones hold a client to: Hermes wants a description, and the name with
# each result; Llama takes one call at a time; Mistral wants ids of 9 characters. Each writes calls as it teaches them.

HERMES_TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>system\\nFunctions: <tools>' }}
{%- for tool in tools %}
{{- tool.function.name + ' - ' + tool.function.description }}
{%- for name, about in tool.function.parameters.properties | items %}{{ ', ' + name }}{% endfor %}
{%- endfor %}
{{- '</tools>\\nAnswer with <tool_call>\\n{"name": <function>, "arguments": <object>}\\n</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{%- if message.name is not defined %}{{ raise_exception('a result needs the name of its function') }}{% endif %}
{{- '<|im_start|>tool\\n<tool_response>\\n' + ({'name': message.name, 'content': message.content} | tojson) }}
{{- '\\n</tool_response><|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' + message.content }}
{%- if message.tool_calls is defined %}{% for call in message.tool_calls %}
{{- '\\n' if message.content or not loop.first }}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' + (call.function.arguments | tojson) }}
{{- '}\\n</tool_call>' }}
{%- endfor %}{% endif %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

LLAMA_TEMPLATE = """\
{{- bos_token }}
{%- if tools %}{{ '<|start_header_id|>system<|end_header_id|>\\n\\nEnvironment: ipython\\n' }}
{{- 'Call a function with {"name": its name, "parameters": object of its arguments}.\\n\\n' }}
{%- for tool in tools %}{{ tool | tojson(indent=4) }}{% endfor %}{{ '<|eot_id|>' }}{% endif %}
{%- for message in messages %}
{%- if 'tool_calls' in message %}
{%- if message.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}
{%- set call = message.tool_calls[0].function %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
{{- (call.arguments | tojson) + '}<|eot_id|>' }}
{%- elif message.role == 'tool' %}
{{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + ({'output': message.content} | tojson) + '<|eot_id|>' }}
{%- else %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""

MISTRAL_TEMPLATE = """\
{%- macro checked(id) %}
{%- if id | length != 9 %}{{ raise_exception('ids have 9 letters or digits') }}{% endif %}{{ id }}
{%- endmacro %}
{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'user' %}
{%- if tools and loop.last %}{{ '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}
{{- '[INST] ' + message.content + '[/INST]' }}
{%- elif message.tool_calls is defined %}
{{- '[TOOL_CALLS] [' }}
{%- for call in message.tool_calls %}
{{- (call.function | tojson)[:-1] + ', "id": "' + checked(call.id) + '"}' + (']' if loop.last else ', ') }}
{%- endfor %}
{{- eos_token }}
{%- elif message.role == 'tool' %}
{{- '[TOOL_RESULTS] {"content": ' + message.content + ', "call_id": "' + checked(message.tool_call_id) }}
{{- '"}[/TOOL_RESULTS]' }}
{%- else %}{{ ' ' + message.content + eos_token }}{% endif %}
{%- endfor %}
"""

MISTRAL_ARGS_TEMPLATE = """\
{{- bos_token }}
{%- if tools %}{{ '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}
{%- for message in messages %}
{%- if message.role == 'user' %}{{ '[INST]' + message.content + '[/INST]' }}
{%- elif message.role == 'tool' %}
{{- '[TOOL_RESULTS]' + message.tool_call_id + '[TOOL_CONTENT]' + message.content + '[/TOOL_RESULTS]' }}
{%- else %}{{ message.content }}
{%- for call in message.tool_calls or [] %}
{%- if call.id | length != 9 %}{{ raise_exception('ids have 9 letters or digits') }}{% endif %}
{{- '[TOOL_CALLS]' + call.function.name + '[CALL_ID]' + call.id + '[ARGS]' + (call.function.arguments | tojson) }}
{%- endfor %}{{ eos_token }}{% endif %}
{%- endfor %}
"""

TEMPLATES = {
    "hermes": HERMES_TEMPLATE,
    "llama": LLAMA_TEMPLATE,
    "mistral": MISTRAL_TEMPLATE,
    "mistral-args": MISTRAL_ARGS_TEMPLATE,
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "leave_days",
            "parameters": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "year": {"type": "integer"}},
                "required": ["name"],
                "additionalProperties": False,
            },
            "strict": True,
        },
    },
    {"type": "function", "function": {"name": "now", "description": "the time"}},
]


def by_name(style):
    return style.name


def render(style, messages, tools=TOOLS, prompt=False):
    special = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": prompt}
    turned = tools_for_template(tools) if tools else None
    text, _ = render_jinja_template([messages], tools=turned, chat_template=TEMPLATES[style.name], **special)
    return text[0]


def call(name, arguments, id="call_0123456789abcdef"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def read(pieces, style):
    """(content, calls) of an answer that comes in `pieces`: a text whole, a list piece by piece."""
    splitter = ToolCallSplitter(style, KNOWN)
    events = [event for piece in [pieces] * isinstance(pieces, str) or pieces for event in splitter.feed(piece)]
    events += splitter.end()
    assert all(events)
    return "".join(e for e in events if isinstance(e, str)), [e for e in events if not isinstance(e, str)]


def said(content, *calls):
    return content, [ToolCall(*each) for each in calls]


# Which format a template teaches


@pytest.mark.parametrize("style", STYLES, ids=by_name)
def test_a_template_tells_its_style(style):
    assert style_of(TEMPLATES[style.name]) is style


def test_templates_without_tools_or_with_other_formats_have_no_style():
    assert style_of(None) is style_of("") is None
    assert style_of((MODELS / "mini-instruct" / "chat_template.jinja").read_text(encoding="utf-8")) is None
    xml = "{% if tools %}<tool_call>\n<function=name>\n<parameter=p>{% endif %}{{ call.arguments }}"
    pythonic = "{% if tools %}Environment: ipython, answer with [name(argument=value)]{% endif %}{{ call.arguments }}"
    other = '{% if tools %}functools[{"name": name, "arguments": object}]{% endif %}'
    assert [style_of(text) for text in (xml, xml.replace("function=name", "arg_key"), pythonic, other)] == [None] * 4
    assert style_of("{{ message.content }} never writes <tool_call> with arguments") is None


# Whole answers


def test_hermes_calls_with_text_before_and_between():
    first = '<tool_call>\n{"name": "leave_days", "arguments": {"name": "Ada", "year": 2026}}\n</tool_call>'
    second = '<tool_call>{"arguments": {}, "name": "now"}</tool_call>'
    ada = ("leave_days", '{"name": "Ada", "year": 2026}')
    assert read(first, HERMES) == said("", ada)
    assert read(f"Let me look.\n\n{first}\n{second}\n", HERMES) == said("Let me look.", ada, ("now", "{}"))
    assert read(f"{first}\nDone.", HERMES) == said("\nDone.", ada)


def test_llama_calls_stand_alone():
    ada = '{"name": "leave_days", "parameters": {"name": "Ada"}}'
    now = '{"type": "function", "name": "now", "parameters": {}}'
    calls = (("leave_days", '{"name": "Ada"}'), ("now", "{}"))
    for text in (f"{ada}; {now}", f"\n{ada}\n{now}\n", f"<|python_tag|>{ada};{now}", f"{ada}<|python_tag|> {now};"):
        assert read(text, LLAMA) == said("", *calls)
    assert read(f"Well: {ada}", LLAMA) == said(f"Well: {ada}")
    assert read(f"Well: <|python_tag|>{ada}", LLAMA) == said("Well:", calls[0])
    assert read(f"{ada}; then", LLAMA) == said("; then", calls[0])


@pytest.mark.parametrize("style", [MISTRAL, MISTRAL_ARGS], ids=by_name)
def test_mistral_calls_in_both_formats(style):
    ada, now = ("leave_days", '{"name": "Ada"}'), ("now", "{}")
    old = '[TOOL_CALLS] [{"name": "leave_days", "arguments": {"name": "Ada"}, "id": "abcdefgh1"}, {"name": "now"}]'
    assert read(old, style) == said("", ada, now)
    assert read('[TOOL_CALLS]leave_days[ARGS]{"name": "Ada"}[TOOL_CALLS]now[CALL_ID]abcdefgh1[ARGS]{}', style) == said(
        "", ada, now
    )
    assert read('One moment. [TOOL_CALLS]now[ARGS] {"zone": "UTC"}', style) == said(
        "One moment.", ("now", '{"zone": "UTC"}')
    )


@pytest.mark.parametrize(
    ("text", "style"),
    [
        ("Nothing to call here.\n", HERMES),
        ("", HERMES),
        (" \n", LLAMA),
        ("a < b and <tool_ is no tag", HERMES),
        ('<tool_call>\n{"name": "delete_all", "arguments": {}}\n</tool_call>', HERMES),
        ('<tool_call>\n{"name": "now", "arguments": {"a": 1}\n</tool_call>', HERMES),
        ('<tool_call>\n{"name": "now", "arguments": "soon"}\n</tool_call>', HERMES),
        ('<tool_call>\n{"name": ["now"], "arguments": {}}\n</tool_call>', HERMES),
        ('<tool_call>\n{"name": "now", "arguments": {}} and more</tool_call>', HERMES),
        ("<tool_call>now()</tool_call>", HERMES),
        ('<tool_call>{"name": "now", "arguments": {"a": ', HERMES),
        ('{"answer": 42}', LLAMA),
        ('{"name": "Ada", "parameters": {}}', LLAMA),
        ('<|python_tag|>print("now")', LLAMA),
        ('[TOOL_CALLS][{"name": "now"}, {"name": "delete_all"}]', MISTRAL),
        ("[TOOL_CALLS][]", MISTRAL),
        ("[TOOL_CALLS][1, 2]", MISTRAL),
        ("[TOOL_CALLS]now[ARGS][1]", MISTRAL),
        ("[TOOL_CALLS]delete_all[ARGS]{}", MISTRAL),
        ("[TOOL_CALLS]now or later", MISTRAL),
    ],
)
def test_what_is_no_call_stays_content(text, style):
    assert read(text, style) == said(text)


@pytest.mark.parametrize(
    "value",
    ["NaN", "-Infinity", "[" * 200_000 + "]" * 200_000, "[" * 200_000, "9" * 5000, "1,", "'x'"],
    ids=["nan", "minus-inf", "deep", "deeper", "digits", "comma", "quotes"],
)
@pytest.mark.parametrize("style", STYLES, ids=by_name)
def test_json_that_not_every_reader_takes_is_content(style, value):
    text = written(style, "now", f'{{"a": {value}}}')
    assert read(text, style) == said(text)


@pytest.mark.parametrize(
    ("value", "told"),
    [("1e999", sys.float_info.max), ("-23E5232349", -sys.float_info.max), ('"a\\ud800b"', "a\ufffdb"), ("1e-999", 0.0)],
)
@pytest.mark.parametrize("style", STYLES, ids=by_name)
def test_json_that_some_readers_cannot_hold_is_told_as_near_as_they_can(style, value, told):
    """A grammar allows it, so a forced call may be it, and must still be a call."""
    _, (found,) = read(written(style, "now", f'{{"a": {value}}}'), style)
    assert json.loads(found.arguments) == {"a": told}
    assert found.arguments.encode()


def test_a_broken_call_does_not_hide_the_next_one():
    good = '<tool_call>{"name": "now"}</tool_call>'
    for broken in ('<tool_call>{"name": </tool_call>', '<tool_call>{"name": "no', "<tool_call>"):
        assert read(broken + good, HERMES) == said(broken, ("now", "{}"))


def test_arguments_are_written_anew_and_always_parse():
    text = (
        '<tool_call>{"name":"now","arguments":{"place":"K\u00f6ln\n</tool_call>","tab":"\t", "n" : 1.50}}</tool_call>'
    )
    _, (found,) = read(text, HERMES)
    assert json.loads(found.arguments) == {"place": "K\u00f6ln\n</tool_call>", "tab": "\t", "n": 1.5}
    assert "K\u00f6ln" in found.arguments


def test_a_closing_tag_that_never_comes_is_forgiven_once_the_json_is_complete():
    assert read('<tool_call>{"name": "now"}\n', HERMES) == said("", ("now", "{}"))
    assert read('<tool_call>{"name": "now"}</tool_', HERMES) == said("", ("now", "{}"))


# In pieces


def written(style, name, arguments):
    if style is MISTRAL_ARGS:
        return f"[TOOL_CALLS]{name}[ARGS]{arguments}"
    one = f'{{"name": "{name}", "{style.key}": {arguments}}}'
    return f"{style.prefix}[{one}]" if style.lists else f"{style.prefix}{one}\n{style.tail}"


def cut(text, rng):
    at = sorted(rng.sample(range(len(text) + 1), min(len(text), rng.randint(0, 8))))
    return [text[start:end] for start, end in zip([0, *at], [*at, len(text)], strict=True)]


def fragments(style):
    arguments = ("{}", '{"a": "<}\\"]\\\\", "b": [1]}')
    calls = [written(style, name, each) for name in ("now", "other") for each in arguments]
    heads = [
        style.marker,
        style.marker[:3],
        style.tail,
        style.tail[:4],
        "now[ARGS]",
        "now[CALL_ID]ab",
        "[TOOL_CALLS] [",
    ]
    return [*calls * 3, *heads, *' \n;{}[]"\\<', '{"name": "now"', '{"name": "now"}', "text", "K\u00f6ln "]


@pytest.mark.parametrize("style", STYLES, ids=by_name)
def test_every_way_of_cutting_gives_the_same(style):
    rng = random.Random(style.name)
    parts, calls = fragments(style), 0
    for _ in range(600):
        text = "".join(rng.choices(parts, k=rng.randint(1, 7)))
        if rng.random() < 0.3:
            text = text[: rng.randint(0, len(text))]
        content, found = whole = read(text, style)
        calls += len(found)
        for pieces in (list(text), cut(text, rng), cut(text, rng)):
            assert read(pieces, style) == whole, pieces
        if not found:
            assert content == text
    assert calls > 100


def test_content_goes_out_at_once_and_a_call_when_it_is_complete():
    splitter = ToolCallSplitter(HERMES, KNOWN)
    assert splitter.feed("One moment") == ["One moment"]
    assert splitter.feed(", a <b> tag") == [", a <b> tag"]
    assert splitter.feed(".\n<tool") == ["."]
    assert splitter.feed("box> is") == ["\n<toolbox> is"]
    assert splitter.feed(' <tool_call>{"name": "now"}') == []
    assert splitter.feed("</tool_call>") == [ToolCall("now", "{}")]
    assert splitter.feed("\n") == []
    assert splitter.end() == []


def test_a_broken_call_goes_out_as_soon_as_it_cannot_become_one():
    splitter = ToolCallSplitter(HERMES, KNOWN)
    assert splitter.feed('<tool_call>{"name": ') == []
    assert "".join(splitter.feed("</tool_call> Sorry")) == '<tool_call>{"name": </tool_call> Sorry'
    assert "".join(splitter.feed("<tool_call>now")) == "<tool_call>now"
    assert "".join(splitter.feed('<tool_call>{"name": "other"}')) == '<tool_call>{"name": "other"}'


def test_llama_json_that_is_no_call_goes_out_after_its_first_key():
    splitter = ToolCallSplitter(LLAMA, KNOWN)
    assert splitter.feed('{"answer') == []
    assert splitter.feed('": ') == ['{"answer":']
    assert splitter.feed("42}") == [" 42}"]


# Forced calls


@pytest.mark.parametrize("style", STYLES, ids=by_name)
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "leave_days"}}])
def test_what_the_schema_allows_is_one_valid_call(style, choice):
    forced = forced_schema(TOOLS, choice, style)
    jsonschema.Draft202012Validator.check_schema(forced.schema)
    assert fits(forced, style, "leave_days", {"name": "Ada", "year": 2026})
    assert fits(forced, style, "now", {}) == (choice == "required")
    for name, arguments in [("leave_days", {}), ("leave_days", {"name": 1}), ("now", {"zone": "UTC"}), ("other", {})]:
        assert not fits(forced, style, name, arguments)


def fits(forced, style, name, arguments):
    value = {"name": name, style.key: arguments}
    if "[ARGS]" in forced.prefix:
        value = arguments if forced.prefix == f"[TOOL_CALLS]{name}[ARGS]" else None
    elif style.lists:
        value = [value]
    good = jsonschema.Draft202012Validator(forced.schema).is_valid(value)
    if good:
        text = forced.prefix + json.dumps(value) + forced.suffix
        assert read(text, style) == said("", (name, json.dumps(arguments)))
        assert text.strip() == text
    return good


def test_references_inside_parameters_still_point_at_their_target():
    person = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "boss": {"$ref": "#/$defs/Person"}},
        "required": ["name"],
    }
    staff = {"properties": {"who": {"$ref": "#/$defs/Person"}, "under": {"$ref": "#"}}, "$defs": {"Person": person}}
    tools = [*TOOLS, {"type": "function", "function": {"name": "staff", "parameters": staff}}]
    valid = jsonschema.Draft202012Validator(forced_schema(tools, "required", HERMES).schema).is_valid
    boss = {"who": {"name": "Ada", "boss": {"name": "Bo"}}}
    assert valid({"name": "staff", "arguments": {**boss, "under": boss}})
    assert not valid({"name": "staff", "arguments": {"who": {"name": "Ada", "boss": {}}}})
    assert not valid({"name": "staff", "arguments": {"under": {"who": {}}}})
    assert not valid({"name": "staff", "arguments": []})


@pytest.mark.parametrize(
    ("tools", "choice", "message"),
    [
        (TOOLS, {"type": "function", "function": {"name": "delete_all"}}, "'delete_all', which is not in tools"),
        ([], "required", "tools is empty"),
        (
            [{"function": {"name": "now", "parameters": {"type": "string"}}}],
            "required",
            "not a JSON schema of an object",
        ),
        ([{"function": {"name": "now", "parameters": True}}], "required", "not a JSON schema of an object"),
    ],
)
def test_a_choice_that_cannot_be_forced_is_refused(tools, choice, message):
    for style in STYLES:
        with pytest.raises(LabError, match=message):
            forced_schema(tools, choice, style)


# History, through the templates


def test_ids_have_nine_letters_or_digits_and_differ():
    ids = {new_call_id() for _ in range(200)}
    assert len(ids) == 200
    assert all(len(id) == 9 and set(id) <= set(string.ascii_letters + string.digits) for id in ids)


HISTORY = [
    {"role": "user", "content": "How many days has Ada left, and what time is it?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [call("leave_days", '{"name": "Ada"}', "call_a"), call("now", "", "call_b")],
    },
    {"role": "tool", "tool_call_id": "call_b", "content": "12:30"},
    {"role": "tool", "tool_call_id": "call_a", "content": "14"},
    {"role": "assistant", "content": "14 days; it is 12:30.", "tool_calls": []},
    {"role": "user", "content": "Thanks"},
]


@pytest.mark.parametrize("style", STYLES, ids=by_name)
def test_history_with_calls_renders_in_every_family(style):
    before = json.dumps(HISTORY)
    text = render(style, for_template(HISTORY, style), prompt=True)
    assert json.dumps(HISTORY) == before
    assert '{"name": "Ada"}' in text
    assert text.index("leave_days", text.index("How many")) < text.index("14 days; it is 12:30.")
    assert "strict" not in text
    assert "None" not in text


@pytest.mark.parametrize("style", STYLES, ids=by_name)
def test_a_call_as_the_template_writes_it_is_read_back(style):
    calls = [call("leave_days", '{"name": "K\u00f6ln <b>", "year": 1}', "abcdefgh1"), call("now", "{}", "abcdefgh2")]
    message = {"role": "assistant", "content": "", "tool_calls": calls[:1] if style is LLAMA else calls}
    text = render(style, for_template([HISTORY[0], message], style))
    answer = text[text.rindex("[/INST]" if style.lists else "assistant") :].partition("]" if style.lists else "\n")[2]
    for ending in ("<|im_end|>\n", "<|eot_id|>", "</s>"):
        answer = answer.removesuffix(ending)
    assert read(answer, style) == said("", *[tuple(each["function"].values()) for each in message["tool_calls"]])


def test_ids_of_other_servers_become_short_and_still_agree():
    turned = for_template(HISTORY)
    ids = [each["id"] for each in turned[1]["tool_calls"]]
    assert [turned[3]["tool_call_id"], turned[2]["tool_call_id"]] == ids
    assert all(len(id) == 9 and id.isalnum() for id in ids)
    own = [{"role": "assistant", "content": "", "tool_calls": [call("now", "{}", "abcdefgh1")]}]
    assert for_template(own)[0]["tool_calls"][0]["id"] == "abcdefgh1"


def test_llama_gets_one_call_at_a_time_each_with_its_result():
    turned = for_template(HISTORY, LLAMA)
    pairs = ["assistant", "tool"] * 2
    assert [message["role"] for message in turned] == ["user", *pairs, "assistant", "user"]
    assert [turned[2]["content"], turned[4]["content"]] == ["14", "12:30"]
    again = for_template([*HISTORY, *HISTORY[1:4]], LLAMA)  # a client that counts its ids anew
    assert [message["content"] for message in again if message["role"] == "tool"] == ["14", "12:30"] * 2


@pytest.mark.parametrize("arguments", ["{", "[1]", "null", "[" * 100_000])
def test_arguments_in_the_history_must_be_an_object(arguments):
    message = {"role": "assistant", "content": None, "tool_calls": [call("now", "{}"), call("now", arguments)]}
    with pytest.raises(LabError, match="'now' are not a JSON object") as error:
        for_template([HISTORY[0], message])
    assert error.value.where == "messages[1].tool_calls[1]"


def test_a_result_without_its_call_is_refused():
    with pytest.raises(LabError, match="'call_b', which no message before it made") as error:
        for_template([HISTORY[0], HISTORY[2], HISTORY[1]])
    assert error.value.where == "messages[1]"
    with pytest.raises(LabError, match="the call '', which"):
        for_template([{"role": "tool", "content": "12:30"}])
