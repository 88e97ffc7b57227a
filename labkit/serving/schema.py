"""What a request may say and what an answer says: the types of the API, as pydantic models.

A field that is not here is refused with 400, and so is a value that would not be honoured. Null means the default, as
in OpenAI's API. /openapi.json is made from these models.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

ANY_OBJECT = {"type": "object"}  # what response_format json_object asks for
MOST_TOP_LOGPROBS = 20
NAME = r"^[a-zA-Z0-9_-]{1,64}$"  # of a function or a schema


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)  # 4.0 is an integer in JSON schema, and some clients write it so


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ImageUrl(Strict):
    url: str = Field(description="a data URL: data:image/png;base64,... (png, jpeg, webp, gif); no other is fetched")
    detail: Literal["auto", "low", "high"] | None = Field(None, description="auto; low and high are refused")


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


def _part_kind(part: object) -> str:
    """Which part it is. Told apart by hand: pydantic's own tags would look like fields in the path to a problem."""
    return f"[{part.get('type') if isinstance(part, dict) else getattr(part, 'type', '')}]"


UNKNOWN_PART = {
    "custom_error_type": "content_part",
    "custom_error_message": "a part of a content has the type text or image_url",
}
Part = Annotated[
    Annotated[TextPart, Tag("[text]")] | Annotated[ImagePart, Tag("[image_url]")],
    Discriminator(_part_kind, **UNKNOWN_PART),
]


class FunctionCall(Strict):
    name: str
    arguments: str = Field(description="JSON text")


class ToolCall(Strict):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(Strict):
    """One turn of the conversation. `developer` is the newer name of `system` and is rendered as it."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = Field(None, description="text, or parts; images are parts of a user's message")
    reasoning_content: str | None = Field(None, description="of an assistant: as an earlier answer gave it")
    tool_calls: list[ToolCall] | None = Field(None, description="of an assistant: as an earlier answer gave them")
    tool_call_id: str | None = Field(None, description="of a tool: the call that it answers")

    @model_validator(mode="after")
    def _agree(self):
        if self.role != "assistant" and (self.tool_calls or self.reasoning_content):
            raise ValueError("tool_calls and reasoning_content belong to the role assistant")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError("tool_call_id belongs to the role tool, which cannot be without")
        if self.content is None and not self.tool_calls:
            raise ValueError("content is missing")
        if self.role != "user" and self.has_images:
            raise ValueError("image parts belong to the role user")
        return self

    @property
    def has_images(self) -> bool:
        return isinstance(self.content, list) and any(isinstance(part, ImagePart) for part in self.content)

    @property
    def shown(self) -> str | list[dict]:
        """The content as chat templates take it: one text, or with images its parts."""
        if not isinstance(self.content, list):
            return self.content or ""
        if not self.has_images:
            return "".join(part.text for part in self.content)
        return [part.model_dump() if isinstance(part, TextPart) else {"type": "image"} for part in self.content]

    def as_dict(self) -> dict:
        """The message as chat templates take it."""
        more = self.model_dump(include={"reasoning_content", "tool_calls", "tool_call_id"}, exclude_none=True)
        return {"role": "system" if self.role == "developer" else self.role, "content": self.shown, **more}


class StreamOptions(Strict):
    include_usage: bool = False


class Function(Strict):
    name: str = Field(pattern=NAME)
    description: str | None = None
    parameters: dict | None = Field(None, description="a JSON schema of the arguments")
    strict: bool | None = Field(None, description="arguments are always kept to the schema when a call is forced")


class Tool(Strict):
    type: Literal["function"]
    function: Function


class NamedFunction(Strict):
    name: str


class NamedTool(Strict):
    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Strict):
    name: str = Field(pattern=NAME)
    description: str | None = None
    schema_: dict = Field(alias="schema", description="a JSON schema; what cannot be enforced is refused")
    strict: bool | None = Field(None, description="the schema is always kept")


class TextFormat(Strict):
    type: Literal["text"]


class ObjectFormat(Strict):
    type: Literal["json_object"]


class SchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: JsonSchema


Format = Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]


class Decoding(Strict):
    """What the two kinds of requests share."""

    model: str | None = Field(None, description="optional; the served model's name, or an adapter's")
    max_tokens: Annotated[int, Field(ge=1, le=2**31 - 1), WHOLE] | None = Field(
        None, description="most tokens to answer with; default: the output limit"
    )
    temperature: float | None = Field(None, ge=0, le=2, description="0 to 2; default 0, which is greedy")
    top_p: float | None = Field(None, ge=0, le=1, description="0 to 1, nucleus sampling; default 1")
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1), WHOLE] | None = Field(
        None, description="integer; same seed, same answer"
    )
    stop: str | list[str] | None = Field(None, description="a text, or up to 4, of 1 to 128 characters, not returned")
    stream: bool | None = Field(None, description="true: server-sent events that end with [DONE]")
    stream_options: StreamOptions | None = Field(None, description="with stream: {include_usage: true|false}")
    n: Annotated[int, Field(ge=1, le=128), WHOLE] | None = Field(
        None, description="answers to make; at most the server's concurrency; default 1"
    )
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="-2 to 2; default 0")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="-2 to 2; default 0")

    @model_validator(mode="after")
    def _stops_and_stream(self):
        if len(self.stops) > 4 or any(not 1 <= len(stop) <= 128 for stop in self.stops):
            raise ValueError("stop takes a text, or a list of up to 4, of 1 to 128 characters each")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only for stream: true")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_tokens

    @property
    def scores(self) -> int | None:
        """How many of the likeliest tokens to tell beside each chosen one; None for no scores at all."""
        raise NotImplementedError

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(Decoding):
    """The body of POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(
        min_length=1,
        description="required; objects with role (system, developer, user, assistant, tool) and content: a text, or a "
        "list of parts {type: text, text} and, from a user to a model with vision, {type: image_url, image_url: {url: "
        "a data URL}}",
    )
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31 - 1), WHOLE] | None = Field(
        None, description="the newer name of max_tokens"
    )
    logprobs: bool | None = Field(None, description="true: the log-probability of each token")
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP_LOGPROBS), WHOLE] | None = Field(
        None, description="with logprobs: 0 to 20 rivals"
    )
    response_format: Format | None = Field(
        None, description="text, json_object or json_schema, by constrained decoding"
    )
    tools: list[Tool] | None = Field(None, min_length=1, description="functions the model may call")
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = Field(
        None, description="none, auto, required, or one function; default auto"
    )
    parallel_tool_calls: bool | None = Field(None, description="with tools: false for one call at most; default true")

    @model_validator(mode="after")
    def _agree(self):
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise ValueError("max_tokens and max_completion_tokens are two names of one limit; send one of them")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs is only for logprobs: true")
        if self.tool_choice not in (None, "none") and not self.tools:
            raise ValueError("tool_choice is only for tools")
        if self.parallel_tool_calls is not None and not self.tools:
            raise ValueError("parallel_tool_calls is only for tools")
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("tools name a function twice")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError("tool_choice names a function that is not among the tools")
        if self.forces_a_call and self.json_schema is not None:
            raise ValueError("tool_choice forces a call and response_format another form; send one of them")
        return self

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_tokens or self.max_completion_tokens

    @property
    def scores(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def forces_a_call(self) -> bool:
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)

    @property
    def json_schema(self) -> dict | None:
        """The schema that the answer must keep, or None."""
        if isinstance(self.response_format, SchemaFormat):
            return self.response_format.json_schema.schema_
        return ANY_OBJECT if isinstance(self.response_format, ObjectFormat) else None


class CompletionRequest(Decoding):
    """The body of POST /v1/completions: text goes on, no chat template."""

    prompt: str | list[str] = Field(description="required; a text, or several, each of which gets its answers")
    logprobs: Annotated[int, Field(ge=0, le=5), WHOLE] | None = Field(
        None, description="the log-probability of each token, and so many rivals"
    )

    @model_validator(mode="after")
    def _agree(self):
        if not self.prompts or not all(self.prompts):
            raise ValueError("prompt is empty")
        return self

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def scores(self) -> int | None:
        return self.logprobs


REQUEST_FIELDS = {name: field.description for name, field in ChatRequest.model_fields.items()}


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """Every refusal."""

    error: ErrorDetail


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TokenLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class ScoredToken(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    content: list[ScoredToken]
    refusal: None


class AnswerMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class Reply(BaseModel):
    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage


class ChatChoice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls", "content_filter"]


class ChatCompletion(Reply):
    """The answer of POST /v1/chat/completions when it is not streamed."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class TextLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length", "content_filter"]


class TextCompletion(Reply):
    """The answer of POST /v1/completions when it is not streamed."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


class ModelCard(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelCard]


class Health(BaseModel):
    status: str
    model: str
    revision: str
    device: str
    dtype: str
    backend: str
    backend_reason: str
    adapters: dict[str, str] = Field(description="each adapter's name, and its revision with the base's")
    running: int
    waiting: int
