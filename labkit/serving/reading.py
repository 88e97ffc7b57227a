"""A body as a request that this server will honour in every parameter, or the refusal that says why not."""

from collections.abc import Sequence
from typing import TypeVar

from pydantic import ValidationError

from labkit.serving.contract import Limits, Refusal
from labkit.serving.schema import Decoding

# What stands in pydantic's path to a problem and not in the body: the types that it tried. They may have brackets.
BRANCHES = ("str", "NamedTool")

Asked = TypeVar("Asked", bound=Decoding)


def read_request(kind: type[Asked], body: bytes, models: Sequence[str], limits: Limits) -> Asked:
    """`body` as a request that this server, which has `models`, will honour in every parameter.

    Raises Refusal for anything else.
    """
    try:
        asked = kind.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from None
    if asked.model is not None and asked.model not in models:
        raise unknown_model(asked.model, models, "model")
    if (asked.wanted_tokens or 0) > limits.max_output_tokens:
        name = "max_tokens" if asked.max_tokens else "max_completion_tokens"
        raise Refusal(
            "invalid_value", f"{name} is {asked.wanted_tokens}; the limit is {limits.max_output_tokens}", name
        )
    answers = (asked.n or 1) * len(getattr(asked, "prompts", " "))
    if answers > limits.concurrency:
        text = f"{answers} answers are asked for; this server makes at most {limits.concurrency} at once"
        raise Refusal("invalid_value", text, "prompt" if answers > (asked.n or 1) else "n")
    return asked


def unknown_model(name: str, models: Sequence[str], where: str | None = None) -> Refusal:
    text = f"the model {name[:100]!r} is not served here; this server has {', '.join(models)}"
    return Refusal("model_not_found", text, where)


def _refusal(error: ValidationError) -> Refusal:
    """The first of the deepest problems that pydantic found, told without the values that were sent.

    Where a value may be of several types there is a problem with each; the deepest is with the one meant.
    """
    problems = error.errors(include_input=False, include_url=False, include_context=False)
    problem = max(problems, key=lambda each: len(each["loc"]))
    kind = problem["type"]
    place = problem["loc"] or ("",)
    if place[0] == "response_format":  # after it pydantic names the type that was sent
        place = (place[0], *place[2:])
    *path, last = map(str, place)
    sent = [last] if kind == "extra_forbidden" or not _is_branch(last) else []
    where = ".".join([*(part for part in path if not _is_branch(part)), *sent])[:100]
    if kind == "json_invalid" or (not where and kind == "model_type"):
        return Refusal("invalid_json", f"the body is not a JSON object: {problem['msg']}")
    if kind == "extra_forbidden":
        return Refusal("unsupported_parameter", f"this server does not honour the parameter {where}", where)
    message = problem["msg"].removeprefix("Value error, ")  # of a validator here; begins with the parameter's name
    return Refusal("invalid_value", f"{where}: {message}" if where else message, where or message.split()[0])


def _is_branch(part: str) -> bool:
    return part in BRANCHES or "[" in part
