"""The teaching server: an OpenAI-compatible API around one ChatModel that keeps the contract in contract.py.

Requests are validated here and answered by the scheduler. An answer is never logged, a prompt only with log_prompts.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.sse import EventSourceResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from labkit.generation import ChatModel
from labkit.serving.answers import ChatForm, Form, Reply, TextForm, error_event
from labkit.serving.contract import Refusal, ServerSettings, contract_document
from labkit.serving.document import describe
from labkit.serving.gate import DEADLINE, RECORD, Gate, Metrics, Record, disconnected, going_down, internal
from labkit.serving.jobs import LATE, Admission, Job, Mailbox
from labkit.serving.plan import Plan, Planner
from labkit.serving.reading import read_request, unknown_model
from labkit.serving.scheduler import Scheduler
from labkit.serving.schema import (
    ChatCompletion,
    ChatRequest,
    CompletionRequest,
    Decoding,
    Health,
    ModelCard,
    ModelList,
    TextCompletion,
)

log = logging.getLogger("labkit.serving")

SHORT_BODY = 4096  # bytes; a plain request up to here is read sooner than another thread is woken for it
MODEL_FACTS = ("revision", "device", "dtype", "backend", "backend_reason", "adapters")  # beside its name, at /health
STATUS_CODES = {404: "not_found", 405: "method_not_allowed"}


def create_app(chat_model: ChatModel, settings: ServerSettings) -> FastAPI:
    """The service around `chat_model`. Limits beyond what the model can do are lowered to it."""
    limits = settings.limits.within(chat_model.context_length, chat_model.vision is not None)
    settings = replace(settings, limits=limits)
    scheduler = Scheduler(chat_model, settings.limits.concurrency)
    maker = Maker(chat_model, settings, scheduler)

    def close() -> None:
        maker.close()
        scheduler.close()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI):
        yield
        close()

    app = FastAPI(title="labkit", docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=lifespan)
    app.state.settings, app.state.scheduler, app.state.model = settings, scheduler, chat_model
    app.state.close, app.state.metrics = close, Metrics(scheduler)
    app.add_middleware(Gate, settings=settings, metrics=app.state.metrics)
    app.add_exception_handler(HTTPException, _refused)
    _add_answers(app, maker)  # first: routes are tried in this order
    _add_information(app, chat_model)
    describe(app, chat_model, settings.limits)
    return app


def _add_information(app: FastAPI, model: ChatModel) -> None:
    settings, scheduler, created = app.state.settings, app.state.scheduler, int(time.time())
    names = [model.name, *model.adapters]
    cards = {name: {"id": name, "object": "model", "created": created, "owned_by": "labkit"} for name in names}

    @app.get("/health", response_model=Health, responses={503: {"description": "not ready; `status` says why"}})
    async def health(response: Response) -> dict:
        response.status_code = 200 if scheduler.alive else 503
        return {
            "status": "ok" if scheduler.alive else "the network's thread has ended",
            "model": model.name,
            **{name: getattr(model, name) for name in MODEL_FACTS},
            "running": scheduler.running,
            "waiting": scheduler.waiting,
        }

    @app.get("/livez")
    async def livez() -> dict:
        return {"status": "alive"}

    @app.get("/contract", responses=refusals())
    async def contract() -> dict:
        return contract_document(settings, model)

    @app.get("/metrics", response_class=PlainTextResponse, responses=refusals())
    async def metrics() -> Response:
        return Response(app.state.metrics.page(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models", response_model=ModelList, responses=refusals())
    async def models() -> dict:
        return {"object": "list", "data": list(cards.values())}

    @app.get("/v1/models/{name:path}", response_model=ModelCard, responses=refusals(404))
    async def one_model(name: str) -> dict:
        if name not in cards:
            raise unknown_model(name, names)
        return cards[name]


def _add_answers(app: FastAPI, maker: "Maker") -> None:
    def add(path: str, kind: type[Decoding], form: Form, said: type[BaseModel]) -> None:
        schema = {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}
        body = {"requestBody": {"content": {"application/json": schema}, "required": True}}
        responses = {200: {"model": said, "content": {"text/event-stream": {}}}} | refusals(400, 404, 408, 413, 415)

        @app.post(path, openapi_extra=body, responses=responses | refusals(429, 500, 503, 504))
        async def answer(request: Request) -> Response:
            if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                raise Refusal("unsupported_media_type", "send the body with the header Content-Type: application/json")
            try:
                asked = read_request(kind, await request.body(), maker.models, maker.limits)
                return await _unless_gone(request, maker.response(asked, form, request.scope))
            except HTTPException:
                raise
            except asyncio.CancelledError:
                raise going_down(request.scope[RECORD]) from None
            except Exception as error:
                raise internal(error) from None

    add("/v1/chat/completions", ChatRequest, ChatForm(), ChatCompletion)
    add("/v1/completions", CompletionRequest, TextForm(), TextCompletion)


def refusals(*statuses: int) -> dict:
    """How /openapi.json tells them; 401 goes with every path of a server that has a key."""
    body = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}  # also where a page is text
    return {status: {"content": body, "description": "refused"} for status in (401, *statuses)}


class Maker:
    """Turns a request that was read into answers and those into a response."""

    def __init__(self, model: ChatModel, settings: ServerSettings, scheduler: Scheduler):
        self._model, self._settings, self.limits, self._scheduler = model, settings, settings.limits, scheduler
        self.models = (model.name, *model.adapters)
        self._planner = Planner(model, self.limits, settings.output_filter)
        self._admission = Admission(self.limits)
        self._mailbox: Mailbox | None = None
        self._readers = ThreadPoolExecutor(4, thread_name_prefix="labkit-tokens")

    def close(self) -> None:
        self._readers.shutdown(wait=False, cancel_futures=True)

    async def response(self, asked: Decoding, form: Form, scope: Scope) -> Response:
        loop, record, deadline = asyncio.get_running_loop(), scope[RECORD], scope[DEADLINE]
        if record.body_bytes <= SHORT_BODY and is_plain(asked):
            plan = self._planner.plan(asked)
        else:
            plan = await self._plan_apart(asked, deadline)
        if self._settings.log_prompts:
            record.prompt = self._model.tokenizer.decode(plan.prompts[0])
        wanted, drafts = self._planner.orders(asked, plan)
        if self._mailbox is None or self._mailbox.loop is not loop:
            self._mailbox = Mailbox(loop)
        job = Job(wanted, self._scheduler, self._admission, self._mailbox, deadline, bool(asked.stream))
        tokens = sum(len(ids) for ids in plan.prompts)
        name = asked.model or self._model.name
        revision = self._model.adapters.get(name, self._model.revision)
        reply = Reply(form, name, revision, drafts, tokens, asked.include_usage)
        await job.start()
        if asked.stream:
            return EventStream(job, _recorded(reply, record, reply.events(job, internal)))
        try:
            return JSONResponse(await reply.whole(job))
        finally:
            job.cancel()
            _note(reply, record)

    async def _plan_apart(self, asked: Decoding, deadline: float) -> Plan:
        """In a thread of its own, for what may take long: the event loop must stay free."""
        planning = asyncio.get_running_loop().run_in_executor(self._readers, self._planner.plan, asked)
        try:
            async with asyncio.timeout_at(deadline):
                return await planning
        except TimeoutError:
            raise Refusal("request_timeout", LATE) from None


def is_plain(asked: Decoding) -> bool:
    """Whether nothing has to be compiled (a schema, functions) or decoded (images) for it."""
    if not isinstance(asked, ChatRequest):
        return True
    parts = any(isinstance(message.content, list) for message in asked.messages)
    return not (parts or asked.tools or asked.response_format)


async def _recorded(reply: Reply, record: Record, events: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    try:
        async for event in events:
            yield event
    finally:
        _note(reply, record)


def _note(reply: Reply, record: Record) -> None:
    usage = reply.usage
    record.prompt_tokens, record.completion_tokens = usage.prompt_tokens, usage.completion_tokens
    record.first_token_seconds = round(usage.first_token_seconds, 4)
    record.finish_reasons = tuple(reply.finish_reasons)


async def _unless_gone(request: Request, answering) -> Response:
    """The answer, or an empty response as soon as the client has left; then `answering` is cancelled, slot and all."""
    work = asyncio.ensure_future(answering)
    gone = asyncio.ensure_future(disconnected(request.receive))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await work if work.done() else Response(status_code=499)
    finally:
        work.cancel()
        gone.cancel()


class EventStream(EventSourceResponse):
    """A streaming response that stops its job however it ends: sent to the end, client gone or not reading, or server
    going down, of which the client is told."""

    def __init__(self, job: Job, events: AsyncGenerator[bytes]):
        super().__init__(events, headers={"Cache-Control": "no-cache"})
        self._job, self._events = job, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except asyncio.CancelledError:
            refusal = going_down(scope[RECORD])
            if not scope[RECORD].status:
                raise refusal from None
            await send({"type": "http.response.body", "body": error_event(refusal)})
        finally:
            self._job.cancel()
            await self._events.aclose()  # now, so that the request's line of log has its tokens


def _json(refusal: Refusal) -> JSONResponse:
    return JSONResponse(refusal.body(), refusal.status_code, refusal.headers)


async def _refused(request: Request, error: HTTPException) -> JSONResponse:
    if isinstance(error, Refusal):
        return _json(error)
    code = STATUS_CODES.get(error.status_code, "invalid_value")
    refusal = Refusal(code, f"{request.method} {request.url.path}: {error.detail}")
    refusal.status_code, refusal.headers = error.status_code, error.headers
    return _json(refusal)
