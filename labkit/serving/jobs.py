"""A request's answers, from admission to the last token, as the event loop sees them."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from labkit.errors import LabError
from labkit.generation import Completion
from labkit.serving.contract import Limits, Refusal
from labkit.serving.scheduler import Order, Piece, Scheduler, Wanted

LATE = "not answered within the time that the contract gives a request"


class Admission:
    """`concurrency` answers are made at once, `queue` more wait in order, the next request is refused at once."""

    def __init__(self, limits: Limits):
        self.taken = 0
        self.capacity = limits.concurrency + limits.queue

    def take(self, answers: int) -> None:
        """Raises Refusal (503) when the queue is full."""
        if self.taken + answers > self.capacity:
            raise Refusal("server_busy", f"the server is working on {self.taken} answers of {self.capacity}, its limit")
        self.taken += answers

    def give_back(self) -> None:
        self.taken -= 1


class Mailbox:
    """Calls that the scheduler's thread has made on the event loop `loop`.

    The loop is woken once for all that came since it last looked: each waking takes the processor from the network.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self.loop = loop
        self._calls: deque[Callable[[], None]] = deque()
        self._woken = False

    def post(self, call: Callable[[], None]) -> None:
        """Have `call` made soon. A loop that has closed means that the server is gone and nobody listens."""
        self._calls.append(call)
        if not self._woken:
            self._woken = True
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._empty)

    def _empty(self) -> None:
        self._woken = False  # before the calls: one that comes while they are made wakes the loop again
        while self._calls:
            self._calls.popleft()()


class Job:
    """The answers to one request. `start` takes their places; `items` gives (number of the answer, what was made).

    A `streamed` job makes many pieces, any other one for each answer. After `deadline` (the event loop's time) both
    methods raise Refusal (504) and the job is cancelled. Cancelling stops the answers at their next token.
    """

    def __init__(
        self,
        wanted: Sequence[Wanted],
        scheduler: Scheduler,
        admission: Admission,
        mailbox: Mailbox,
        deadline: float,
        streamed: bool,
    ):
        self._deadline = deadline
        self._scheduler, self._admission = scheduler, admission
        self._made: asyncio.Queue = asyncio.Queue()
        self._orders = [
            Order(
                one,
                tell=lambda item, number=number: mailbox.post(lambda: self._made.put_nowait((number, item))),
                left=lambda: mailbox.post(admission.give_back),
                streamed=streamed,
            )
            for number, one in enumerate(wanted)
        ]
        self._first: list[tuple[int, Piece | Completion]] = []

    def cancel(self) -> None:
        for order in self._orders:
            order.cancelled.set()

    async def start(self) -> None:
        """Returns when the first piece is there. Raises Refusal when there is no place, or none in time."""
        self._admission.take(len(self._orders))
        self._scheduler.submit(self._orders)
        self._first = [await self._next()]

    async def items(self) -> AsyncIterator[tuple[int, Piece | Completion]]:
        """Everything of every answer in the order it was made; each answer's last item is its Completion."""
        left = len(self._orders)
        while left:
            number, item = self._first.pop() if self._first else await self._next()
            left -= isinstance(item, Completion)
            yield number, item

    async def _next(self) -> tuple[int, Piece | Completion]:
        try:
            async with asyncio.timeout_at(self._deadline):
                number, item = await self._made.get()
        except TimeoutError:
            self.cancel()
            raise Refusal("request_timeout", LATE) from None
        except asyncio.CancelledError:
            self.cancel()
            raise
        if isinstance(item, Exception):
            self.cancel()
            raise Refusal("invalid_value", item.what, "response_format") if isinstance(item, LabError) else item
        return number, item
