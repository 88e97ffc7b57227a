"""Several conversations answered by one model in this process: rows of one batch, each taken in as another ends."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from labkit.decoding import Sampling
from labkit.errors import LabError
from labkit.generation.answer import Answer, Completion
from labkit.generation.chat_model import ChatModel, Message


@dataclass(frozen=True)
class Chat:
    """A conversation to be answered; `grammar` keeps the answer to a form (see `json_grammar`)."""

    messages: Sequence[Message]
    sampling: Sampling
    grammar: str = ""


def chat_together(model: ChatModel, chats: Sequence[Chat], width: int) -> Iterator[tuple[int, Completion | LabError]]:
    """The number of each chat and its answer, in the order in which the answers end, at most `width` decoded at once.

    A chat that the model cannot answer, such as one without room in the context, gives its LabError. A pass over eight
    rows of a small model costs little more than one over one row; each answer's time is that among the others.
    """
    rows, under_way, waiting = model.network.rows(), [], deque(enumerate(chats))
    while under_way or waiting:
        while waiting and len(under_way) < width:
            number, chat = waiting.popleft()
            try:
                ids = model.prompt_ids(chat.messages)
                answer = model.answer(ids, chat.sampling, model.constraint(chat.grammar))
            except LabError as error:
                yield number, error
                continue
            under_way.append((number, answer))
            yield from _took(under_way, len(under_way) - 1, model.join(rows, ids), rows)
        if under_way:
            logits = rows.step([answer.last for _, answer in under_way])
            for row in reversed(range(len(under_way))):
                yield from _took(under_way, row, logits[row], rows)


def _took(under_way: list[tuple[int, Answer]], row: int, logits, rows) -> Iterator[tuple[int, Completion | LabError]]:
    """Give the answer of `row` its next token; when it ends there, it leaves, and is told."""
    number, answer = under_way[row]
    try:
        answer.take(logits)
        ended = answer.completion() if answer.finish_reason else None
    except LabError as error:  # the schema turned out too much for the matcher
        ended = error
    if ended is not None:
        del under_way[row]
        rows.leave(row)
        yield number, ended
