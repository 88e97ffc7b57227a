"""What /openapi.json says beyond what FastAPI sees: the bodies, which are read by hand, the key, limits and rules.

The rules are those that schema.py checks between fields, so that a client (or a fuzzer) that keeps to the document is
understood. It never forbids what the server takes; what only the text decides (its tokens) no schema can say.
"""

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from labkit.generation import ChatModel
from labkit.serving.contract import Limits
from labkit.serving.gate import OPEN_PATHS
from labkit.serving.schema import ChatRequest, CompletionRequest, ErrorBody
from labkit.serving.tool_calls import style_of

Schema = dict


def describe(app: FastAPI, model: ChatModel, limits: Limits) -> None:
    """Complete the document of `app`, which serves `model` within `limits`."""
    document = app.openapi()
    kinds = [(kind, "validation") for kind in (ChatRequest, CompletionRequest, ErrorBody)]
    _, more = models_json_schema(kinds, ref_template="#/components/schemas/{model}")
    for kind in ("ChatRequest", "CompletionRequest"):
        _tell_limits(more["$defs"][kind]["properties"], [model.name, *model.adapters], limits)
    _tell_rules(more["$defs"])
    if style_of(model.tokenizer.chat_template) is None:
        _without_tools(more["$defs"])
    parts = document.setdefault("components", {})
    parts["schemas"] = more["$defs"] | parts.get("schemas", {})
    _tell_key(document, bool(app.state.settings.api_keys))


def _tell_key(document: dict, asked_for: bool) -> None:
    methods = [(path, method) for path, item in document["paths"].items() for method in item.values()]
    if asked_for:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, method in methods:
            method["security"] = [] if path in OPEN_PATHS else [{"key": []}]
    else:
        for _, method in methods:
            method["responses"].pop("401", None)


def _tell_limits(fields: dict[str, Schema], models: list[str], limits: Limits) -> None:
    _narrow(fields["model"], string={"enum": models})
    _narrow(fields["n"], integer={"maximum": limits.concurrency})
    for name in fields.keys() & {"max_tokens", "max_completion_tokens"}:
        _narrow(fields[name], integer={"maximum": limits.max_output_tokens})
    stop = {"minLength": 1, "maxLength": 128}
    _narrow(fields["stop"], string=stop, array={"maxItems": 4, "items": {"type": "string", **stop}})
    if "prompt" in fields:
        text = {"minLength": 1}
        prompts = {"minItems": 1, "maxItems": limits.concurrency, "items": {"type": "string", **text}}
        _narrow(fields["prompt"], string=text, array=prompts)


def _without_tools(schemas: dict[str, Schema]) -> None:
    """The model's chat template knows no tools: what offers them, or tells of calls, is refused."""
    schemas["ChatRequest"]["properties"]["tools"]["anyOf"] = [{"type": "null"}]
    _narrow(schemas["ChatMessage"]["properties"]["tool_calls"], array={"maxItems": 0})


def _narrow(field: Schema, **more: Schema) -> None:
    """Add to the types that `field` may have; null stays as it is."""
    for branch in field["anyOf"]:
        branch |= more.get(branch["type"], {})


def _tell_rules(schemas: dict[str, Schema]) -> None:
    streams = _either("stream_options", {"stream": {"const": True}})
    scored = _either("top_logprobs", {"logprobs": {"const": True}})
    offered = _either("tool_choice", {"tools": {"type": "array"}}, {"tool_choice": {"const": "none"}})
    schemas["CompletionRequest"]["allOf"] = [streams]
    called = _either("parallel_tool_calls", {"tools": {"type": "array"}})
    bounded = {"anyOf": [_null("max_tokens"), _null("max_completion_tokens")]}
    schemas["ChatRequest"]["allOf"] = [streams, scored, offered, called, bounded]
    schemas["ChatMessage"]["anyOf"] = _turns()


def _either(name: str, *conditions: dict[str, Schema]) -> Schema:
    """The field `name` is null or missing, or one of `conditions` holds: fields that must be there, each as told."""
    return {"anyOf": [_null(name), *(_with(**condition) for condition in conditions)]}


def _null(name: str) -> Schema:
    return {"properties": {name: {"type": "null"}}}


def _with(**fields: Schema) -> Schema:
    return {"properties": fields, "required": list(fields)}


def _turns() -> list[Schema]:
    """The kinds of messages. An assistant may call and say nothing; a tool answers a call; the others only speak."""
    said, called = {"type": ["string", "array"]}, {"type": "array", "minItems": 1}
    spoken = {"reasoning_content": {"maxLength": 0}, "tool_calls": {"maxItems": 0}}
    unasked = {"tool_call_id": {"type": "null"}}
    kinds = [
        (_with(role={"enum": ["system", "developer", "user"]}, content=said), spoken | unasked),
        (_with(role={"const": "assistant"}, content=said), unasked),
        (_with(role={"const": "assistant"}, tool_calls=called), unasked),
        (_with(role={"const": "tool"}, content=said, tool_call_id={"type": "string"}), spoken),
    ]
    return [{**kind, "properties": kind["properties"] | more} for kind, more in kinds]
