"""The service contract: every error, every limit, and the document that states them.

`contract_document` is generated from the objects that the server enforces, so service_contract.json cannot promise what
the server does not do. What a request may say is in schema.py.
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException

from labkit.errors import LabError
from labkit.serving.schema import REQUEST_FIELDS

if TYPE_CHECKING:
    from labkit.generation import ChatModel

SERVICE = "labkit chat completions"
DRAIN_SECONDS = 5  # what answers under way get to finish in after Ctrl+C or SIGTERM

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
    "rate_limit_exceeded": (429, "requests", "too many requests a minute with this key; try again after Retry-After"),
    "internal_error": (500, "server_error", "the server failed; its log names the request id"),
    "server_busy": (503, "server_error", "every slot and every queue place is taken; try again after Retry-After"),
    "model_loading": (503, "server_error", "the model is still being loaded, or could not be; see /health"),
    "request_timeout": (504, "server_error", "the answer was not ready within the request time"),
}


class Refusal(HTTPException):
    """A request answered with an error in OpenAI's shape. `code` is a key of ERRORS and decides the status.

    `wait` is after how many seconds a refused client may try again.
    """

    def __init__(self, code: str, message: str, param: str | None = None, wait: int = 1):
        status, self.type, _ = ERRORS[code]
        headers = {"Retry-After": str(wait)} if status in (429, 503) else {}
        if code == "invalid_api_key":
            headers["WWW-Authenticate"] = "Bearer"
        super().__init__(status, message, headers)
        self.code, self.param = code, param

    def body(self) -> dict:
        return {"error": {"message": self.detail, "type": self.type, "param": self.param, "code": self.code}}


MAY_BE_ZERO = ("queue", "requests_per_minute", "max_images")


@dataclass(frozen=True)
class Limits:
    """What the server enforces. Tokens are the served model's own; `request_seconds` counts waiting, generating and
    the client's taking what it is sent: then the answer ends, and with it a connection that stays unread.

    `concurrency` answers are made at once, `queue` more may wait; the next one is refused with 503. With
    `requests_per_minute` a key that asks more often is refused with 429; 0 sets no such limit. A request has at most
    `max_images` images of `max_image_pixels` each, whatever their size as files.
    """

    max_input_tokens: int = 1024
    max_output_tokens: int = 256
    max_body_bytes: int = 262_144
    request_seconds: float = 60.0
    concurrency: int = 4
    queue: int = 8
    requests_per_minute: int = 0
    max_images: int = 4
    max_image_pixels: int = 4096 * 4096

    def __post_init__(self):
        for limit in fields(self):
            least = 0 if limit.name in MAY_BE_ZERO else 1 if limit.type is int else 0.001
            if not least <= getattr(self, limit.name) < float("inf"):
                flag = limit.name.replace("_", "-")
                raise LabError(f"the limit {limit.name} must be at least {least}", f"give another --{flag}")

    def within(self, context_length: int, vision: bool = False) -> "Limits":
        """These limits, lowered to what a model with that context (tokens) can do: the contract states the truth."""
        most = max(1, context_length - 1)
        return replace(
            self,
            max_input_tokens=min(self.max_input_tokens, most),
            max_output_tokens=min(self.max_output_tokens, most),
            max_images=self.max_images if vision else 0,
        )


@dataclass(frozen=True)
class ServerSettings:
    """How one server runs. `model`, `device`, `backend`, `dtype` and `revision` are what `load_chat_model` takes.

    `adapters` are (name, folder): a request that asks for the model of that name is answered with that adapter.

    With `api_keys` every path but /health and /livez asks for one of them; `serve` takes them from LABKIT_API_KEY and
    from a file. With `log_prompts` the log holds the prompts too. An answer in which the regular expression
    `output_filter` is found is kept in, and its finish_reason is content_filter.
    """

    model: str = "mini-instruct"
    host: str = "127.0.0.1"
    port: int = 8000
    device: str = "auto"
    limits: Limits = Limits()
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    log_prompts: bool = False
    output_filter: str = ""
    backend: str = "auto"
    dtype: str = "auto"
    revision: str = ""
    adapters: tuple[tuple[str, str], ...] = ()

    def __post_init__(self):
        try:
            re.compile(self.output_filter)
        except re.error as error:
            what = f"the output filter is no regular expression: {error}"
            raise LabError(what, "mend --output-filter") from None

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


def named_adapters(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """NAME=PATH of each text, as `ServerSettings.adapters`. Raises LabError for another text or a name given twice."""
    pairs = [text.partition("=") for text in texts]
    for text, (name, _, folder) in zip(texts, pairs, strict=True):
        if not name or not folder:
            raise LabError(f"--adapter {text} is not NAME=PATH", "for example --adapter refunds=adapters/refunds")
    names = [name for name, *_ in pairs]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise LabError(f"two adapters are called {doubled}", "give each --adapter another name")
    return tuple((name, folder) for name, _, folder in pairs)


def contract_document(settings: ServerSettings, model: "ChatModel") -> dict:
    """The content of service_contract.json for a server with `settings` that serves `model`.

    `settings.limits` are the enforced ones (after `Limits.within`). A running server gives this at GET /contract.
    """
    errors: dict[str, str] = {}
    for code, (status, _, meaning) in ERRORS.items():
        errors[str(status)] = "; ".join(filter(None, [errors.get(str(status)), f"{code}: {meaning}"]))
    return {
        "service": SERVICE,
        "model": model.name,
        "revision": model.revision,
        "backend": model.backend,
        "dtype": model.dtype,
        "adapters": model.adapters,
        "endpoint": {
            "base_url": settings.base_url,
            "health": "GET /health",
            "models": "GET /v1/models",
            "chat": "POST /v1/chat/completions",
            "completions": "POST /v1/completions",
            "metrics": "GET /metrics",
        },
        "authorization": "Authorization: Bearer <key>" if settings.api_keys else "none, loopback only",
        "request": REQUEST_FIELDS,
        "response": {
            "choices[0].message.content": "the answer",
            "choices[0].finish_reason": "stop (the model ended or a stop text came), length (max_tokens reached), "
            "tool_calls, or content_filter",
            "usage": "prompt_tokens, completion_tokens and total_tokens, counted by the model's tokenizer",
            "model": "the name of the model, or the adapter, that answered",
            "system_fingerprint": "its revision; an adapter's is the base's, +, and its own",
            "error": "only on a refusal: message, type, param and code",
        },
        "errors": errors,
        "limits": asdict(settings.limits),
        "stop": {
            "command": f"labkit stop --port {settings.port}",
            "proof": "shutdown_proof.json: the process is gone and the port is closed",
            "drain_seconds": DRAIN_SECONDS,
        },
    }
