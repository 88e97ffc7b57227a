"""Before any route: who asks, how often, and how much; and after it, one line of log and the counters.

The log holds sizes and times, and the first digits of a key's hash; a prompt only where the server was told to.
"""

import asyncio
import hashlib
import hmac
import json
import logging
import math
import secrets
import time
import traceback
from dataclasses import asdict, dataclass

from fastapi.responses import JSONResponse
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labkit.serving.contract import Limits, Refusal, ServerSettings
from labkit.serving.scheduler import Scheduler

log = logging.getLogger("labkit.serving")

OPEN_PATHS = ("/health", "/livez")
ANSWERS = ("/v1/chat/completions", "/v1/completions")
DRAIN_BYTES = 64 * 2**20  # of a body that is too large, read and dropped so that the client can hear the refusal
RECORD = "labkit.record"  # where a route finds its request's Record in the scope
DEADLINE = "labkit.deadline"  # and until when (the event loop's time) it must be answered and the answer taken
CONNECTION = "labkit.connection"  # where the scope's state may have the client's Connection (connections.py)
UNREAD, SHUTDOWN = "unread", "shutdown"  # why an answer was cut off


@dataclass
class Record:
    """What the log says of a request. Token counts and times stay 0 where nothing was generated.

    `cut` is why the server broke the answer off: UNREAD or SHUTDOWN.
    """

    request_id: str
    client: str
    method: str
    path: str
    status: int = 0
    body_bytes: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reasons: tuple[str, ...] = ()
    first_token_seconds: float = 0.0
    seconds: float = 0.0
    cut: str | None = None
    prompt: str | None = None


@dataclass
class Traffic:
    """Requests for an answer: how many got theirs, and from how many the end of the server took it."""

    answered: int = 0
    cut: int = 0

    def add(self, record: Record, whole: bool) -> None:
        if record.path in ANSWERS:
            self.answered += whole and record.status == 200 and record.cut is None
            self.cut += record.cut == SHUTDOWN


class Unread(Exception):
    """The client did not take its answer within the time that the contract gives a request."""


class Metrics:
    """What /metrics tells a Prometheus server, in a registry of this app's own."""

    def __init__(self, scheduler: Scheduler):
        self.registry, self.traffic = CollectorRegistry(), Traffic()
        more = {"registry": self.registry}
        self._requests = Counter("labkit_requests", "Answered requests", ["path", "status"], **more)
        self._tokens = Counter("labkit_tokens", "Tokens read and made", ["kind"], **more)
        self._first = Histogram("labkit_first_token_seconds", "From start to first token", **more)
        self._whole = Histogram("labkit_answer_seconds", "From request to last token", **more)
        Gauge("labkit_running", "Answers being made", **more).set_function(lambda: scheduler.running)
        Gauge("labkit_waiting", "Answers that wait", **more).set_function(lambda: scheduler.waiting)

    def add(self, record: Record) -> None:
        known = (*ANSWERS, *OPEN_PATHS, "/v1/models", "/metrics", "/contract", "/openapi.json")
        path = record.path if record.path in known else "other"  # a label for every path asked for would never end
        self._requests.labels(path, record.status).inc()
        self._tokens.labels("prompt").inc(record.prompt_tokens)
        self._tokens.labels("completion").inc(record.completion_tokens)
        if record.completion_tokens:
            self._first.observe(record.first_token_seconds)
            self._whole.observe(record.seconds)

    def page(self) -> bytes:
        return generate_latest(self.registry)


class Gate:
    """ASGI middleware: key, rate, body; then the app; then the log and the counters."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: Metrics):
        self.app, self._settings, self._metrics = app, settings, metrics
        self._rates = MovingWindowRateLimiter(MemoryStorage())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        record = Record(f"req-{secrets.token_hex(8)}", "local", scope["method"], scope["path"])
        scope[RECORD], scope[DEADLINE] = record, self._deadline()
        sending = Sending(send, scope)
        try:
            await self._kept_or_broken_off(scope, receive, sending)
        finally:
            record.seconds = round(time.perf_counter() - started, 4)
            self._metrics.add(record)
            self._metrics.traffic.add(record, sending.whole)
            log.info("request", extra={"fields": asdict(record)})

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._settings.limits.request_seconds

    async def _kept_or_broken_off(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and give the client until the deadline to take what it was sent; then its connection ends."""
        connection, record = scope.get("state", {}).get(CONNECTION), scope[RECORD]
        if connection:
            connection.keep()
        try:
            await self._pass(scope, receive, send)
        except Unread:
            record.cut = UNREAD
            if connection:
                connection.transport.abort()
                await disconnected(receive)
        except asyncio.CancelledError:  # the drain is over, and the client did not even take the refusal
            record.cut = SHUTDOWN
            if connection:
                connection.transport.abort()
        else:
            if connection:
                connection.end_at(scope[DEADLINE])

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = scope[RECORD]
        try:
            if self._settings.api_keys and scope["path"] not in OPEN_PATHS:
                record.client = check_key(dict(scope["headers"]).get(b"authorization", b""), self._settings.api_keys)
            if scope["path"] in ANSWERS:
                self._check_rate(record.client)
            body = await read_body(scope, receive, self._settings.limits)
        except Refusal as refusal:
            await JSONResponse(refusal.body(), refusal.status_code, refusal.headers)(scope, receive, send)
            return
        if body is None:
            return
        record.body_bytes, scope[DEADLINE] = len(body), self._deadline()
        try:
            await self.app(scope, _replay(body, receive), send)
        except Unread:
            raise
        except Exception as error:
            refusal = internal(error)
            if record.status:  # too late to tell the client
                return
            await JSONResponse(refusal.body(), refusal.status_code)(scope, receive, send)

    def _check_rate(self, client: str) -> None:
        most = self._settings.limits.requests_per_minute
        if not most or self._rates.hit(item := RateLimitItemPerMinute(most), client):
            return
        wait = max(1, math.ceil(self._rates.get_window_stats(item, client).reset_time - time.time()))
        raise Refusal("rate_limit_exceeded", f"{most} requests a minute are allowed; try again in {wait} s", wait=wait)


def going_down(record: Record) -> Refusal:
    """What an answer gets that outlasts the drain: uvicorn cancels it then."""
    record.cut = SHUTDOWN
    return Refusal("server_busy", "the server is shutting down")


def internal(error: Exception) -> Refusal:
    """Log where the server failed, without the exception's text, which may quote a prompt, and give it an id."""
    number = secrets.token_hex(6)
    frames = "".join(traceback.format_tb(error.__traceback__))
    log.error("request %s failed with %s\n%s", number, type(error).__name__, frames)
    return Refusal("internal_error", f"the server failed on this request; its log has the cause under {number}")


def key_name(key: str) -> str:
    """How the log names a key: the first digits of its hash, from which nobody gets the key."""
    return hashlib.sha256(key.encode()).hexdigest()[:8]


def check_key(authorization: bytes, keys: tuple[str, ...]) -> str:
    """The name of the key that the header carries. Raises Refusal (401); all are compared, in constant time."""
    scheme, _, given = authorization.partition(b" ")
    right = [key for key in keys if hmac.compare_digest(given.strip(), key.encode())]
    if scheme.lower() != b"bearer" or not right:
        raise Refusal("invalid_api_key", "send the server's key in the header Authorization: Bearer <key>")
    return key_name(right[0])


async def read_body(scope: Scope, receive: Receive, limits: Limits) -> bytes | None:
    """The whole body, or None when the client left before it was sent. Raises Refusal (408, 413)."""
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    too_large = Refusal("body_too_large", f"the body has more than {limits.max_body_bytes} bytes, the limit")
    if not declared.isdigit() or int(declared) > DRAIN_BYTES:
        raise too_large
    parts, size, more = [], 0, True
    try:
        async with asyncio.timeout(limits.request_seconds):
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                size, more = size + len(message.get("body", b"")), message.get("more_body", False)
                if size <= limits.max_body_bytes:
                    parts.append(message.get("body", b""))
                elif size > DRAIN_BYTES:
                    break
    except TimeoutError:
        text = f"the body did not arrive within {limits.request_seconds:g} s"
        raise Refusal("body_timeout", text) from None
    if size > limits.max_body_bytes:
        raise too_large
    return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


async def disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


class Sending:
    """`send` that notes the status, tells the client the request's id, and raises Unread at the deadline.

    `whole` is whether the answer was sent to its end.
    """

    def __init__(self, send: Send, scope: Scope):
        self._send, self._scope, self.whole = send, scope, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            record = self._scope[RECORD]
            record.status = message["status"]
            message["headers"] = [*message.get("headers", []), (b"x-request-id", record.request_id.encode())]
        try:
            async with asyncio.timeout_at(self._scope[DEADLINE]):
                await self._send(message)
        except TimeoutError:
            raise Unread from None
        self.whole = message["type"] == "http.response.body" and not message.get("more_body", False)


class JsonLines(logging.Formatter):
    """A log line as one JSON object: time (UTC), level, message, and the fields that came with it."""

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        head = {"time": self.formatTime(record), "level": record.levelname.lower(), "message": record.getMessage()}
        return json.dumps(head | {k: v for k, v in getattr(record, "fields", {}).items() if v not in (None, ())})
