"""The teaching server: an OpenAI-compatible API around one ChatModel that keeps the contract in contract.py.

Requests are validated here and answered by the scheduler. An answer is never logged, a prompt only with log_prompts.
"""

import asyncio
import contextlib
import logging
import re
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from jinja2 import TemplateError
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from labkit.errors import LabError
from labkit.generation import COLDEST, ChatModel, Constraint, Sampling, json_grammar
from labkit.serving.answers import ChatDraft, ChatForm, Draft, FilteredDraft, Form, Reply, TextForm
from labkit.serving.contract import Refusal, ServerSettings, contract_document
from labkit.serving.gate import OPEN_PATHS, RECORD, Gate, Metrics, Record, internal
from labkit.serving.jobs import LATE, Admission, Job, Wanted
from labkit.serving.reasoning import reasoning_for_template, thinking_of
from labkit.serving.scheduler import Scheduler
from labkit.serving.schema import (
    REQUEST_FIELDS,
    ChatCompletion,
    ChatRequest,
    CompletionRequest,
    Decoding,
    ErrorBody,
    Health,
    ModelCard,
    ModelList,
    TextCompletion,
    read_request,
)
from labkit.serving.tool_calls import ToolStyle, for_template, forced_schema, style_of, tools_for_template

log = logging.getLogger("labkit.serving")

STATUS_CODES = {404: "not_found", 405: "method_not_allowed"}


def create_app(chat_model: ChatModel, settings: ServerSettings) -> FastAPI:
    """The service around `chat_model`. Limits that the model's context cannot hold are lowered to what it can."""
    settings = replace(settings, limits=settings.limits.within(chat_model.context_length))
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
    _add_information(app, chat_model)
    _add_answers(app, maker)
    _describe(app)
    return app


def _describe(app: FastAPI) -> None:
    """Put into /openapi.json what FastAPI cannot see: the bodies, which are read by hand, and the key."""
    document = app.openapi()
    kinds = [(kind, "validation") for kind in (ChatRequest, CompletionRequest)]
    _, more = models_json_schema(kinds, ref_template="#/components/schemas/{model}")
    parts = document.setdefault("components", {})
    parts["schemas"] = more["$defs"] | parts.get("schemas", {})
    methods = [(path, method) for path, item in document["paths"].items() for method in item.values()]
    if app.state.settings.api_keys:
        parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, method in methods:
            method["security"] = [] if path in OPEN_PATHS else [{"key": []}]
    else:
        for _, method in methods:
            method["responses"].pop("401", None)


def _add_information(app: FastAPI, model: ChatModel) -> None:
    settings, scheduler, created = app.state.settings, app.state.scheduler, int(time.time())
    card = {"id": model.name, "object": "model", "created": created, "owned_by": "labkit"}

    @app.get("/health", response_model=Health, responses={503: {"description": "not ready; `status` says why"}})
    async def health(response: Response) -> dict:
        response.status_code = 200 if scheduler.alive else 503
        facts = {"model": model.name, "revision": model.revision, "device": model.device, "dtype": model.dtype}
        return {
            "status": "ok" if scheduler.alive else "the network's thread has ended",
            **facts,
            "running": scheduler.running,
            "waiting": scheduler.waiting,
        }

    @app.get("/livez")
    async def livez() -> dict:
        return {"status": "alive"}

    @app.get("/contract", responses=refusals())
    async def contract() -> dict:
        return contract_document(settings, model.name, model.revision, REQUEST_FIELDS)

    @app.get("/metrics", response_class=PlainTextResponse, responses=refusals())
    async def metrics() -> Response:
        return Response(app.state.metrics.page(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models", response_model=ModelList, responses=refusals())
    async def models() -> dict:
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{name:path}", response_model=ModelCard, responses=refusals(404))
    async def one_model(name: str) -> dict:
        if name != model.name:
            raise Refusal("model_not_found", f"the model {name!r} is not served here; this server has {model.name}")
        return card


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
                asked = read_request(kind, await request.body(), app.state.model.name, maker.limits)
                return await _unless_gone(request, maker.response(asked, form, request.scope[RECORD]))
            except HTTPException:
                raise
            except asyncio.CancelledError:  # uvicorn does this to answers that outlast its drain
                raise Refusal("server_busy", "the server is shutting down") from None
            except Exception as error:
                raise internal(error) from None

    add("/v1/chat/completions", ChatRequest, ChatForm(), ChatCompletion)
    add("/v1/completions", CompletionRequest, TextForm(), TextCompletion)


def refusals(*statuses: int) -> dict:
    """How /openapi.json tells them; 401 goes with every path of a server that has a key."""
    return {status: {"model": ErrorBody, "description": "refused"} for status in (401, *statuses)}


@dataclass(frozen=True)
class Plan:
    """A request in the scheduler's terms. `where` is the parameter that the prompts came from, for errors about it."""

    prompts: list[list[int]]
    where: str
    constraint: Constraint | None = None
    kept: str = ""
    draft: Callable[[int], Draft] = Draft
    samplings: Sequence[Sampling] = ()


class Maker:
    """Turns a request that was read into answers and those into a response."""

    def __init__(self, model: ChatModel, settings: ServerSettings, scheduler: Scheduler):
        self._model, self._settings, self.limits, self._scheduler = model, settings, settings.limits, scheduler
        self._admission = Admission(self.limits)
        self._readers = ThreadPoolExecutor(4, thread_name_prefix="labkit-tokens")  # the event loop must stay free

    def close(self) -> None:
        self._readers.shutdown(wait=False, cancel_futures=True)

    async def response(self, asked: Decoding, form: Form, record: Record) -> Response:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.limits.request_seconds
        try:
            async with asyncio.timeout_at(deadline):
                plan = await loop.run_in_executor(self._readers, self._plan, asked)
        except TimeoutError:
            raise Refusal("request_timeout", LATE) from None
        if self._settings.log_prompts:
            record.prompt = self._model.tokenizer.decode(plan.prompts[0])
        wanted, drafts = self._orders(asked, plan)
        job = Job(wanted, self._scheduler, self._admission, deadline)
        tokens = sum(len(ids) for ids in plan.prompts)
        reply = Reply(form, self._model.name, self._model.revision, drafts, tokens, asked.include_usage)
        await job.start()
        if asked.stream:
            return EventStream(job, _recorded(reply, record, reply.events(job, internal)))
        try:
            return JSONResponse(await reply.whole(job))
        finally:
            job.cancel()
            _note(reply, record)

    def _plan(self, asked: Decoding) -> "Plan":
        """The request in the scheduler's terms. Raises Refusal for what cannot be answered."""
        if isinstance(asked, ChatRequest):
            plan = self._plan_chat(asked)
        else:
            plan = Plan([self._model.prompt_of(prompt) for prompt in asked.prompts], "prompt")
        first = _sampling(asked)
        return replace(plan, samplings=[self._fitting(len(ids), first, plan.where) for ids in plan.prompts])

    def _orders(self, asked: Decoding, plan: "Plan") -> tuple[list[Wanted], list[Draft | FilteredDraft]]:
        """The answers that the plan makes, `n` for each prompt with a seed each, and what becomes of their texts."""
        wanted = [
            Wanted(
                ids, replace(sampling, seed=sampling.seed + at), plan.constraint and plan.constraint.fresh(), plan.kept
            )
            for ids, sampling in zip(plan.prompts, plan.samplings, strict=True)
            for at in range(asked.n or 1)
        ]
        drafts = [plan.draft(number) for number in range(len(wanted))]
        pattern = self._settings.output_filter
        return wanted, [FilteredDraft(draft, re.compile(pattern)) for draft in drafts] if pattern else drafts

    def _plan_chat(self, asked: ChatRequest) -> "Plan":
        template = self._model.tokenizer.chat_template
        style = style_of(template)
        if style is None and (asked.tools or any(message.tool_calls for message in asked.messages)):
            raise Refusal("unsupported_parameter", "the chat template of this model knows no tools", "tools")
        tools = [tool.model_dump(exclude_none=True) for tool in asked.tools or ()]
        offered = tools if asked.tool_choice != "none" else []
        ids = self._chat_ids(asked, style, offered)
        constraint, begun = self._form(asked, style, offered)
        thinking = "off" if constraint else thinking_of(template, self._model.tokenizer.decode(ids[-8:]))
        names, used = [tool["function"]["name"] for tool in offered], style if offered else None
        return Plan(
            [ids + self._model.text_ids(begun)],
            "messages",
            constraint,
            style.marker if used else "",
            lambda number: ChatDraft(number, thinking, used, names, begun),
        )

    def _chat_ids(self, asked: ChatRequest, style: ToolStyle | None, tools: list[dict]) -> list[int]:
        messages = [message.as_dict() for message in asked.messages]
        more = {"tools": tools_for_template(tools)} if tools else {}
        try:
            turned = for_template(reasoning_for_template(messages, self._model.tokenizer.chat_template), style)
            return self._model.prompt_ids(turned, **more)
        except TemplateError as error:
            text = f"the model's chat template refuses these messages: {error}"
            raise Refusal("invalid_value", text, "messages") from None
        except LabError as error:
            raise Refusal("invalid_value", error.what, "messages") from None
        except (TypeError, UnicodeError, RecursionError):  # half a character, or endless nesting, in replayed arguments
            raise Refusal("invalid_value", "the messages cannot be written as text", "messages") from None

    def _form(self, asked: ChatRequest, style: ToolStyle | None, tools: list[dict]) -> tuple[Constraint | None, str]:
        """What keeps the answer to its form, and what is written for the model before it: a forced call's opening,
        whose marker is one special token in some families, which a grammar of characters would spell out."""
        where, begun, grammar = "response_format", "", ""
        try:
            if asked.forces_a_call:
                where, choice = "tools", asked.tool_choice
                forced = forced_schema(tools, choice if choice == "required" else choice.model_dump(), style)
                grammar, begun = json_grammar(forced.schema, after=forced.suffix), forced.prefix
            elif asked.json_schema is not None:
                grammar = json_grammar(asked.json_schema)
            return self._model.constraint(grammar), begun
        except LabError as error:
            raise Refusal("invalid_value", error.what, where) from None

    def _fitting(self, prompt_tokens: int, sampling: Sampling, where: str) -> Sampling:
        """The sampling with max_tokens filled in. Raises Refusal when the prompt, or prompt and answer, do not fit."""
        if not prompt_tokens:
            raise Refusal("invalid_value", f"the {where} has no tokens", where)
        context, most = self._model.context_length, self.limits.max_input_tokens
        if prompt_tokens > most:
            text = f"the {where} has {prompt_tokens} tokens; the limit is {most}"
            raise Refusal("context_length_exceeded", text, where)
        room, wanted = context - prompt_tokens, sampling.max_tokens
        if max(wanted, 1) > room:
            text = f"{prompt_tokens} tokens of {where} and {max(wanted, 1)} of answer; the context holds {context}"
            raise Refusal("context_length_exceeded", text, where)
        return replace(sampling, max_tokens=wanted or min(room, self.limits.max_output_tokens))


def _sampling(asked: Decoding) -> Sampling:
    """What the request asks for. max_tokens 0 means: as many as the limits allow; no seed means a fresh one.

    Temperatures under COLDEST are greedy: dividing logits by them overflows.
    """
    temperature = asked.temperature or 0.0
    return Sampling(
        max_tokens=asked.wanted_tokens or 0,
        temperature=temperature if temperature >= COLDEST else 0.0,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        seed=secrets.randbits(31) if asked.seed is None else asked.seed,
        stop=asked.stops,
        presence_penalty=asked.presence_penalty or 0.0,
        frequency_penalty=asked.frequency_penalty or 0.0,
        top_logprobs=asked.scores,
    )


async def _recorded(reply: Reply, record: Record, events: AsyncIterator[str]) -> AsyncGenerator[str]:
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


class EventStream(StreamingResponse):
    """A streaming response that stops its job however it ends: sent to the end, client gone, or server going down."""

    def __init__(self, job: Job, events: AsyncGenerator[str]):
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._job, self._events = job, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
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
