"""The service contract: what a client may send, what it gets back, and every limit, in one place.

The server validates requests with these models and refuses with these errors, and `contract_document` is generated
from the same objects, so service_contract.json cannot promise what the server does not do.
"""

import ipaddress
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.exceptions import HTTPException

from labkit.errors import LabError

SERVICE = "labkit chat completions"

# code -> (HTTP status, OpenAI error type, meaning). Every refusal of the server is one of these.
ERRORS = {
    "invalid_json": (400, "invalid_request_error", "the body is not a JSON object"),
    "unsupported_parameter": (400, "invalid_request_error", "a parameter that this server does not honour"),
    "invalid_value": (400, "invalid_request_error", "a parameter is missing, of the wrong type or out of range"),
    "context_length_exceeded": (400, "invalid_request_error", "the prompt, or prompt plus max_tokens, is too long"),
    "invalid_api_key": (401, "invalid_request_error", "the Authorization header does not carry the server's key"),
    "not_found": (404, "invalid_request_error", "there is no such path"),
    "model_not_found": (404, "invalid_request_error", "the model asked for is not the one served"),
    "method_not_allowed": (405, "invalid_request_error", "the path does not answer to this method"),
    "body_timeout": (408, "invalid_request_error", "the body did not arrive within the request time"),
    "body_too_large": (413, "invalid_request_error", "the body has more bytes than the limit"),
    "unsupported_media_type": (415, "invalid_request_error", "the body is not sent as application/json"),
    "internal_error": (500, "server_error", "the server failed; its log names the request id"),
    "server_busy": (503, "server_error", "every slot and every queue place is taken; try again after Retry-After"),
    "request_timeout": (504, "server_error", "the answer was not ready within the request time"),
}


class Refusal(HTTPException):
    """A request answered with an error in OpenAI's shape. `code` is a key of ERRORS and decides the status."""

    def __init__(self, code: str, message: str, param: str | None = None):
        status, self.type, _ = ERRORS[code]
        headers = {"Retry-After": "1"} if code == "server_busy" else {}
        if code == "invalid_api_key":
            headers["WWW-Authenticate"] = "Bearer"
        super().__init__(status, message, headers)
        self.code, self.param = code, param

    def body(self) -> dict:
        return {"error": {"message": self.detail, "type": self.type, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Limits:
    """What the server enforces. Tokens are the served model's own; `request_seconds` counts waiting and generating.

    `concurrency` answers are made at once, `queue` more requests may wait; the next one is refused with 503.
    """

    max_input_tokens: int = 1024
    max_output_tokens: int = 256
    max_body_bytes: int = 262_144
    request_seconds: float = 60.0
    concurrency: int = 2
    queue: int = 8

    def __post_init__(self):
        for limit in fields(self):
            least = 0 if limit.name == "queue" else 1 if limit.type is int else 0.001
            if not least <= getattr(self, limit.name) < float("inf"):
                flag = limit.name.replace("_", "-")
                raise LabError(f"the limit {limit.name} must be at least {least}", f"give another --{flag}")

    def within(self, context_length: int) -> "Limits":
        """These limits, lowered where the model's context (tokens) cannot hold them: the contract states the truth."""
        most = max(1, context_length - 1)
        return replace(
            self,
            max_input_tokens=min(self.max_input_tokens, most),
            max_output_tokens=min(self.max_output_tokens, most),
        )


@dataclass(frozen=True)
class ServerSettings:
    """How one server runs. `model` and `device` are what `load_chat_model` takes.

    With an `api_key` every path but /health and /livez asks for it; `serve` takes it from LABKIT_API_KEY.
    """

    model: str = "mini-instruct"
    host: str = "127.0.0.1"
    port: int = 8000
    device: str = "auto"
    limits: Limits = Limits()
    api_key: str = field(default="", repr=False)

    @property
    def base_url(self) -> str:
        """Where a client on this machine reaches the server."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class ChatMessage(Strict):
    """One turn of the conversation. `developer` is the newer name of `system` and is rendered as it."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str

    def as_dict(self) -> dict[str, str]:
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


class StreamOptions(Strict):
    include_usage: bool = False


class ChatRequest(Strict):
    """The body of POST /v1/chat/completions. Null means the default, as in OpenAI's API.

    n, the penalties and logprobs are accepted at the one value that changes nothing, because clients send them.
    """

    messages: list[ChatMessage] = Field(
        min_length=1, description="required; objects with role (system, developer, user, assistant) and content (text)"
    )
    model: str | None = Field(None, description="optional; the served model's name")
    max_tokens: int | None = Field(None, ge=1, description="most tokens to answer with; default: the output limit")
    max_completion_tokens: int | None = Field(None, ge=1, description="the newer name of max_tokens")
    temperature: float | None = Field(None, ge=0, le=2, description="0 to 2; default 0, which is greedy")
    top_p: float | None = Field(None, ge=0, le=1, description="0 to 1, nucleus sampling; default 1")
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1, description="integer; same seed, same answer")
    stop: str | list[str] | None = Field(None, description="a text, or up to 4, of 1 to 128 characters, not returned")
    stream: bool | None = Field(None, description="true: server-sent events that end with [DONE]")
    stream_options: StreamOptions | None = Field(None, description="with stream: {include_usage: true|false}")
    n: int | None = Field(None, ge=1, le=1, description="only 1")
    presence_penalty: float | None = Field(None, ge=0, le=0, description="only 0")
    frequency_penalty: float | None = Field(None, ge=0, le=0, description="only 0")
    logprobs: Literal[False] | None = Field(None, description="only false")

    @model_validator(mode="after")
    def _agree(self):
        stops = self.stops
        if len(stops) > 4 or any(not 1 <= len(stop) <= 128 for stop in stops):
            raise ValueError("stop takes a text, or a list of up to 4, of 1 to 128 characters each")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only for stream: true")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ; send one of them")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_tokens or self.max_completion_tokens

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


def read_chat_request(body: bytes, model: str, limits: Limits) -> ChatRequest:
    """`body` as a request that this server will honour in every parameter. Raises Refusal for anything else."""
    try:
        asked = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from None
    if asked.model is not None and asked.model != model:
        text = f"the model {asked.model[:100]!r} is not served here; this server has {model}"
        raise Refusal("model_not_found", text, "model")
    if (asked.wanted_tokens or 0) > limits.max_output_tokens:
        name = "max_tokens" if asked.max_tokens else "max_completion_tokens"
        raise Refusal(
            "invalid_value", f"{name} is {asked.wanted_tokens}; the limit is {limits.max_output_tokens}", name
        )
    return asked


def _refusal(error: ValidationError) -> Refusal:
    """The first problem that pydantic found, told without the values that were sent."""
    problem = error.errors(include_input=False, include_url=False, include_context=False)[0]
    kind = problem["type"]
    where = ".".join(str(part) for part in problem["loc"] if part not in ("str", "list[str]"))[:100]
    if kind == "json_invalid" or (not where and kind == "model_type"):
        return Refusal("invalid_json", f"the body is not a JSON object: {problem['msg']}")
    if kind == "extra_forbidden":
        return Refusal("unsupported_parameter", f"this server does not honour the parameter {where}", where)
    message = problem["msg"].removeprefix("Value error, ")  # of ChatRequest._agree; begins with the parameter's name
    return Refusal("invalid_value", f"{where}: {message}" if where else message, where or message.split()[0])


def contract_document(settings: ServerSettings, model: str, revision: str) -> dict:
    """The content of service_contract.json for a server with `settings` that serves `model`.

    `settings.limits` are the enforced ones (after `Limits.within`). A running server gives this at GET /contract.
    """
    errors: dict[str, str] = {}
    for code, (status, _, meaning) in ERRORS.items():
        errors[str(status)] = "; ".join(filter(None, [errors.get(str(status)), f"{code}: {meaning}"]))
    return {
        "service": SERVICE,
        "model": model,
        "revision": revision,
        "endpoint": {
            "base_url": settings.base_url,
            "health": "GET /health",
            "models": "GET /v1/models",
            "chat": "POST /v1/chat/completions",
        },
        "authorization": "Authorization: Bearer <key>" if settings.api_key else "none, loopback only",
        "request": {name: field.description for name, field in ChatRequest.model_fields.items()},
        "response": {
            "choices[0].message.content": "the answer",
            "choices[0].finish_reason": "stop (the model ended or a stop text came) or length (max_tokens reached)",
            "usage": "prompt_tokens, completion_tokens and total_tokens, counted by the model's tokenizer",
            "model": "the served model's name",
            "system_fingerprint": "the served model's revision",
            "error": "only on a refusal: message, type, param and code",
        },
        "errors": errors,
        "limits": asdict(settings.limits),
        "stop": {
            "command": f"labkit stop --port {settings.port}",
            "proof": "shutdown_proof.json: the process is gone and the port is closed",
        },
    }
