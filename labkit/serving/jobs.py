"""One answer at a time in a worker thread, and no more of them than the contract allows.

The event loop must stay free to accept, refuse and notice clients that leave, so the model runs in threads. A slot is
given back by the thread that used it, when the model has really stopped, so `concurrency` is never exceeded.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from dataclasses import replace

from jinja2 import TemplateError

from labkit.errors import LabError
from labkit.generation import ChatModel, Completion, Message, Sampling
from labkit.serving.contract import Limits, Refusal


class Slots:
    """Admission: `concurrency` jobs run, `queue` more wait in order, the next one is refused at once."""

    def __init__(self, limits: Limits):
        self.running = self.waiting = 0
        self._capacity = limits.concurrency + limits.queue
        self._free = asyncio.Semaphore(limits.concurrency)

    async def take(self) -> None:
        """Wait for a slot. Raises Refusal (503) when the queue is full."""
        if self.running + self.waiting >= self._capacity:
            raise Refusal("server_busy", f"the server is working on {self._capacity} requests, its limit")
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.running += 1

    def give_back(self) -> None:
        self.running -= 1
        self._free.release()


class Job:
    """One answer being made. `start` takes the slot and checks the prompt; `items` then gives what `stream` gives.

    Cancelling stops the model at its next piece of text. After `deadline` (the event loop's time) both methods raise
    Refusal (504) and the job is cancelled.
    """

    def __init__(self, model: ChatModel, messages: list[Message], sampling: Sampling, limits: Limits):
        self._model, self._messages, self._sampling, self._limits = model, messages, sampling, limits
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + limits.request_seconds
        self._made: asyncio.Queue = asyncio.Queue()
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        self._cancelled.set()

    async def start(self, slots: Slots, workers: Executor) -> None:
        """Returns when the prompt is accepted. Raises Refusal when it is not, or when there is no slot in time."""
        await self._in_time(slots.take())
        try:
            workers.submit(self._run, slots)
        except RuntimeError:
            slots.give_back()
            raise Refusal("server_busy", "the server is shutting down") from None
        await self._next()

    async def items(self) -> AsyncIterator[str | Completion]:
        item = None
        while not isinstance(item, Completion):
            item = await self._next()
            yield item

    async def _next(self):
        item = await self._in_time(self._made.get())
        if isinstance(item, Exception):
            raise item
        return item

    async def _in_time(self, waiting):
        try:
            async with asyncio.timeout_at(self._deadline):
                return await waiting
        except TimeoutError:
            self.cancel()
            raise Refusal("request_timeout", f"not answered within {self._limits.request_seconds:g} s") from None
        except asyncio.CancelledError:
            self.cancel()
            raise

    def _run(self, slots: Slots) -> None:
        """The worker thread's part. The slot is free before the last item is told: a client that has its whole answer
        may ask again at once, and must not be refused because of the answer that it holds in its hands."""
        last: Completion | Exception | None = None
        try:
            last = self._generate()
        except TemplateError as error:
            last = Refusal("invalid_value", f"the model's chat template refuses these messages: {error}", "messages")
        except LabError as error:
            last = Refusal("context_length_exceeded", str(error), "messages")
        except Exception as error:
            last = error
        finally:
            self._tell(slots.give_back)
        if last is not None:
            self._tell(self._made.put_nowait, last)

    def _generate(self) -> Completion | None:
        """Tell each piece of text; the completion is returned, or None when the job was cancelled."""
        if self._cancelled.is_set():
            return None
        sampling = self._fitting(self._model.count_tokens(self._messages))
        self._tell(self._made.put_nowait, "")
        with contextlib.closing(self._model.stream(self._messages, sampling)) as stream:
            for item in stream:
                if self._cancelled.is_set():
                    return None
                if isinstance(item, Completion):
                    return item
                self._tell(self._made.put_nowait, item)
        return None

    def _fitting(self, prompt_tokens: int) -> Sampling:
        """The sampling with max_tokens filled in. Raises Refusal when the prompt, or prompt and answer, do not fit."""
        context, most = self._model.context_length, self._limits.max_input_tokens
        if prompt_tokens > most:
            text = f"the messages have {prompt_tokens} tokens; the limit is {most}"
            raise Refusal("context_length_exceeded", text, "messages")
        room, wanted = context - prompt_tokens, self._sampling.max_tokens
        if max(wanted, 1) > room:
            text = f"{prompt_tokens} tokens of messages and {max(wanted, 1)} of answer; the context holds {context}"
            raise Refusal("context_length_exceeded", text, "messages")
        return replace(self._sampling, max_tokens=wanted or min(room, self._limits.max_output_tokens))

    def _tell(self, call, *values) -> None:
        """Run `call` on the event loop; a loop that has closed means that the server is gone and nobody listens."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *values)
