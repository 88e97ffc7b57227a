"""The teaching server: an OpenAI-compatible API around one ChatModel that keeps the contract in contract.py.

Requests are validated here and answered by jobs.py. Nothing of a prompt or an answer is ever logged.
"""

import asyncio
import contextlib
import hmac
import json
import logging
import secrets
import time
import traceback
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labkit.generation import ChatModel, Completion, Sampling
from labkit.serving.contract import (
    ChatRequest,
    Limits,
    Refusal,
    ServerSettings,
    contract_document,
    read_chat_request,
)
from labkit.serving.jobs import Job, Slots

log = logging.getLogger("labkit.serving")

OPEN_PATHS = ("/health", "/livez")
STATUS_CODES = {404: "not_found", 405: "method_not_allowed"}
DRAIN_BYTES = 64 * 2**20  # of a body that is too large, read and dropped so that the client can hear the refusal


def create_app(chat_model: ChatModel, settings: ServerSettings) -> FastAPI:
    """The service around `chat_model`. Limits that the model's context cannot hold are lowered to what it can."""
    settings = replace(settings, limits=settings.limits.within(chat_model.context_length))
    workers = ThreadPoolExecutor(settings.limits.concurrency, thread_name_prefix="labkit-answer")

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI):
        yield
        workers.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(title="labkit", docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=lifespan)
    app.state.settings, app.state.slots, app.state.workers = settings, Slots(settings.limits), workers
    app.add_middleware(Gate, settings=settings)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, _failed)
    _add_information(app, chat_model)
    _add_chat(app, chat_model)
    return app


def _add_information(app: FastAPI, model: ChatModel) -> None:
    settings, slots, created = app.state.settings, app.state.slots, int(time.time())
    card = {"id": model.name, "object": "model", "created": created, "owned_by": "labkit"}

    @app.get("/health")
    async def health() -> dict:
        facts = {"model": model.name, "revision": model.revision, "device": model.device, "dtype": model.dtype}
        return {"status": "ok", **facts, "running": slots.running, "waiting": slots.waiting}

    @app.get("/livez")
    async def livez() -> dict:
        return {"status": "alive"}

    @app.get("/contract")
    async def contract() -> dict:
        return contract_document(settings, model.name, model.revision)

    @app.get("/v1/models")
    async def models() -> dict:
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict:
        if name != model.name:
            raise Refusal("model_not_found", f"the model {name!r} is not served here; this server has {model.name}")
        return card


def _add_chat(app: FastAPI, model: ChatModel) -> None:
    settings, slots, workers = app.state.settings, app.state.slots, app.state.workers
    schema = {"content": {"application/json": {"schema": ChatRequest.model_json_schema()}}, "required": True}

    async def answer(asked: ChatRequest) -> Response:
        messages = [message.as_dict() for message in asked.messages]
        job = Job(model, messages, _sampling(asked), settings.limits)
        answering = Answer(model, asked.include_usage)
        await job.start(slots, workers)
        if asked.stream:
            return EventStream(job, answering.events(job))
        return JSONResponse(await answering.whole(job))

    @app.post("/v1/chat/completions", openapi_extra={"requestBody": schema})
    async def chat_completions(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refusal("unsupported_media_type", "send the body with the header Content-Type: application/json")
        asked = read_chat_request(await request.body(), model.name, settings.limits)
        try:
            return await _unless_gone(request, answer(asked))
        except HTTPException:
            raise
        except asyncio.CancelledError:  # uvicorn does this to answers that outlast its drain
            raise Refusal("server_busy", "the server is shutting down") from None
        except Exception as error:
            raise _internal(error) from None


def _sampling(asked: ChatRequest) -> Sampling:
    """What the request asks for. max_tokens 0 means: as many as the limits allow; no seed means a fresh one.

    Temperatures under 0.001 are greedy: dividing logits by them overflows.
    """
    temperature = asked.temperature or 0.0
    return Sampling(
        max_tokens=asked.wanted_tokens or 0,
        temperature=temperature if temperature >= 0.001 else 0.0,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        seed=secrets.randbits(31) if asked.seed is None else asked.seed,
        stop=asked.stops,
    )


async def _unless_gone(request: Request, answering) -> Response:
    """The answer, or an empty response as soon as the client has left; then `answering` is cancelled, slot and all."""
    work = asyncio.ensure_future(answering)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await work if work.done() else Response(status_code=499)
    finally:
        work.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue


class Answer:
    """Turns what a job makes into OpenAI's chat.completion object or into its stream of chunks."""

    def __init__(self, model: ChatModel, include_usage: bool):
        self.include_usage = include_usage
        self.id, self._started = f"chatcmpl-{secrets.token_hex(12)}", time.perf_counter()
        self._head = {"created": int(time.time()), "model": model.name, "system_fingerprint": model.revision}

    async def whole(self, job: Job) -> dict:
        async for item in job.items():
            completion = item
        self._log(completion)
        message = {"role": "assistant", "content": completion.text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": completion.finish_reason}
        head = {"id": self.id, "object": "chat.completion", **self._head}
        return {**head, "choices": [choice], "usage": usage(completion)}

    async def events(self, job: Job) -> AsyncIterator[str]:
        """Server-sent events: the role, the pieces, the finish reason, the usage when asked for, [DONE].

        The status is already sent, so a failure after the first event is an event with an error, and no [DONE].
        """
        yield self._chunk({"role": "assistant", "content": ""})
        try:
            async for item in job.items():
                if isinstance(item, str):
                    if item:
                        yield self._chunk({"content": item})
                    continue
                self._log(item)
                yield self._chunk({}, item.finish_reason)
                if self.include_usage:
                    yield self._event({"choices": [], "usage": usage(item)})
                yield "data: [DONE]\n\n"
        except Refusal as refusal:
            yield f"data: {json.dumps(refusal.body())}\n\n"
        except Exception as error:
            yield f"data: {json.dumps(_internal(error).body())}\n\n"

    def _chunk(self, delta: dict, finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._event({"choices": [choice], **({"usage": None} if self.include_usage else {})})

    def _event(self, fields: dict) -> str:
        return f"data: {json.dumps({'id': self.id, 'object': 'chat.completion.chunk', **self._head, **fields})}\n\n"

    def _log(self, done: Completion) -> None:
        seconds = time.perf_counter() - self._started
        counts = (done.prompt_tokens, done.completion_tokens, done.finish_reason, seconds)
        log.info("%s: %d tokens in, %d out, %s, %.3f s", self.id, *counts)


def usage(done: Completion) -> dict:
    total = done.prompt_tokens + done.completion_tokens
    return {
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.completion_tokens,
        "total_tokens": total,
    }


class EventStream(StreamingResponse):
    """A streaming response that stops its job however it ends: sent to the end, client gone, or server going down."""

    def __init__(self, job: Job, events: AsyncIterator[str]):
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.cancel()


class Gate:
    """Before any route: the key is checked, then the body is read up to its limit in bytes and in seconds."""

    def __init__(self, app: ASGIApp, settings: ServerSettings):
        self.app, self._key, self._limits = app, settings.api_key, settings.limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            if self._key and scope["path"] not in OPEN_PATHS:
                check_key(dict(scope["headers"]).get(b"authorization", b""), self._key)
            body = await read_body(scope, receive, self._limits)
        except Refusal as refusal:
            await _json(refusal)(scope, receive, send)
            return
        if body is not None:
            await self.app(scope, _replay(body, receive), send)


def check_key(authorization: bytes, key: str) -> None:
    """Raises Refusal (401) unless the header carries `key`; compared in constant time."""
    scheme, _, given = authorization.partition(b" ")
    if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), key.encode()):
        raise Refusal("invalid_api_key", "send the server's key in the header Authorization: Bearer <key>")


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


def _json(refusal: Refusal) -> JSONResponse:
    return JSONResponse(refusal.body(), refusal.status_code, refusal.headers)


async def _refused(request: Request, error: HTTPException) -> JSONResponse:
    if isinstance(error, Refusal):
        return _json(error)
    code = STATUS_CODES.get(error.status_code, "invalid_value")
    refusal = Refusal(code, f"{request.method} {request.url.path}: {error.detail}")
    refusal.status_code, refusal.headers = error.status_code, error.headers
    return _json(refusal)


async def _failed(request: Request, error: Exception) -> JSONResponse:
    return _json(_internal(error))


def _internal(error: Exception) -> Refusal:
    """Log where the server failed, without the exception's text, which may quote a prompt, and give it an id."""
    number = secrets.token_hex(6)
    frames = "".join(traceback.format_tb(error.__traceback__))
    log.error("request %s failed with %s\n%s", number, type(error).__name__, frames)
    return Refusal("internal_error", f"the server failed on this request; its log has the cause under {number}")
