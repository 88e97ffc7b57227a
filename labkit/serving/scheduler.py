"""The one thread that runs the network: every answer under way gets its next token in the same pass.

The event loop must stay free to accept, refuse and notice clients that leave, so the network runs in a thread of its
own. An answer that is cancelled leaves at the next token.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from labkit.generation import Answer, ChatModel, Completion, Constraint, Images, Sampling, TokenScore

log = logging.getLogger("labkit.serving")

# The tokens that a streamed answer gets within so many seconds go out together. Nobody reads faster, and a chunk costs
# the server and its client more than a small model's token does.
PIECE_SECONDS = 0.025


@dataclass(frozen=True)
class Piece:
    """Text that was just made certain (empty while it is held back), the number of tokens since the last piece, and
    their scores where asked for."""

    text: str
    tokens: int
    scores: tuple[TokenScore, ...] = ()


Item = Piece | Completion | Exception  # an order's last item is one of the latter two


@dataclass(frozen=True)
class Wanted:
    """One answer that a request asks for: the prompt's token ids, how to decode, what keeps it to a form, a marker that
    stays in the text although it may be a special token, the images of the prompt, and the adapter that answers, ""
    for the base alone."""

    ids: Sequence[int]
    sampling: Sampling
    constraint: Constraint | None = None
    kept: str = ""
    images: Images | None = None
    adapter: str = ""


@dataclass(eq=False)
class Order:
    """One answer to be made, in pieces if it is `streamed`, else in one.

    `tell` is called from the scheduler's thread with each item; `left` when it is all over.

    `left` comes before the last item is told: a client that has its whole answer may ask again at once, and must not be
    refused because of the answer that it holds in its hands.
    """

    wanted: Wanted
    tell: Callable[[Item], None]
    left: Callable[[], None]
    streamed: bool
    cancelled: threading.Event = field(default_factory=threading.Event)


@dataclass(eq=False)
class Row:
    """An order that is being answered. Its next piece is told not before `due`, a time of the monotonic clock."""

    order: Order
    answer: Answer
    due: float
    told: int = 0  # tokens

    def tell(self) -> None:
        """Tell what the answer has that was not told, and when it is due next."""
        scores = tuple(self.answer.scores(self.told))
        since, self.told = self.told, self.answer.tokens
        self.due = max(self.due, time.monotonic() + PIECE_SECONDS)
        self.order.tell(Piece(self.answer.piece(), self.told - since, scores))


class Scheduler:
    """Answers orders, `width` of them together, in the order in which they came."""

    def __init__(self, model: ChatModel, width: int):
        self._model, self._width = model, width
        self._batch = model.network.rows()
        self._rows: list[Row] = []
        self._waiting: deque[Order] = deque()
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="labkit-scheduler", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def running(self) -> int:
        return len(self._rows)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def submit(self, orders: Sequence[Order]) -> None:
        with self._changed:
            self._waiting.extend(orders)
            self._changed.notify()

    def close(self) -> None:
        """End the thread after the token that it is making; nobody is told."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while self._wait_for_work():
            self._leave_cancelled()
            while len(self._rows) < self._width and self._waiting:
                self._tell_streams()
                self._join(self._waiting.popleft())
            if self._rows:
                self._step()

    def _tell_streams(self) -> None:
        """Nobody waits for tokens that are there while a long prompt is read."""
        for row in self._rows:
            if row.order.streamed and row.told < row.answer.tokens:
                row.tell()

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._rows or self._waiting)
            return not self._closed

    def _leave_cancelled(self) -> None:
        with self._changed:  # nobody may join the queue while it is looked through
            gone = [order for order in self._waiting if order.cancelled.is_set()]
            for order in gone:
                self._waiting.remove(order)
        for order in gone:
            order.left()
        for number in reversed(range(len(self._rows))):
            if number < len(self._rows) and self._rows[number].order.cancelled.is_set():
                self._leave(number)

    def _leave(self, number: int, last: Item | None = None) -> None:
        row = self._rows.pop(number)
        _end(row.order, last)
        try:
            self._batch.leave(number)
        except BaseException as error:
            self._lose(error)

    def _lose(self, error: BaseException) -> None:
        """What the rows remember is lost, and nobody knows whose fault it is: all end, and the next ones begin anew."""
        rows, self._rows = self._rows, []
        self._batch = self._model.network.rows()
        for row in rows:
            _end(row.order, _told(error))

    def _join(self, order: Order) -> None:
        try:
            wanted = order.wanted
            answer = self._model.answer(wanted.ids, wanted.sampling, wanted.constraint, wanted.kept)
            images = (wanted.images,) if wanted.images else ()
            adapter = {"adapter": wanted.adapter} if wanted.adapter else {}
            logits = self._batch.join(wanted.ids, *images, **adapter)
        except BaseException as error:  # a panic in a library's Rust is no Exception
            _end(order, _told(error))
            return
        self._rows.append(Row(order, answer, due=0.0 if order.streamed else math.inf))
        self._take(len(self._rows) - 1, logits)

    def _step(self) -> None:
        try:
            logits = self._batch.step([row.answer.last for row in self._rows])
        except BaseException as error:
            self._lose(error)
            return
        for number in reversed(range(len(self._rows))):
            if number < len(self._rows):  # all rows are gone where one could not leave
                self._take(number, logits[number])

    def _take(self, number: int, logits) -> None:
        """Give row `number` its next token, and let it leave when that was the last."""
        row = self._rows[number]
        try:
            row.answer.take(logits)
            if row.answer.finish_reason or time.monotonic() >= row.due:
                row.tell()
        except BaseException as error:
            self._leave(number, _told(error))
            return
        if row.answer.finish_reason:
            self._leave(number, row.answer.completion())


def _end(order: Order, last: Item | None) -> None:
    order.left()
    if last is not None:
        order.tell(last)


def _told(error: BaseException) -> Exception:
    """`error` as a request may be told it: its own where it is an Exception, one for each row that it took along."""
    return error if isinstance(error, Exception) else RuntimeError(type(error).__name__)
