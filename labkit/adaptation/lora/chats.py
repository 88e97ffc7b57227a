"""Chats as token ids with the assistant's tokens marked, and which chats each step of a run sees."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from labkit.errors import LabError

ROLES = ("system", "user", "assistant", "tool")
GENERATION = "{% generation"  # the marker by which a chat template shows the assistant's part


@dataclass(frozen=True)
class EncodedChat:
    """One chat: its token ids, shape (n,), and which of them the assistant wrote, shape (n,), bool."""

    ids: np.ndarray
    scored: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def load_chats(path: Path) -> list[list[dict]]:
    """The `messages` of each line of a JSONL file.

    Raises LabError with the line's number for a line that is no chat, or in which the assistant says nothing.
    """
    from labkit.training.recipe import read_chats

    path = Path(path)
    if not path.is_file():
        raise LabError(f"there is no file {path.name}", 'give a JSONL file, {"messages": [...]} on each line')
    chats = read_chats(path)
    if not chats:
        raise LabError(f"{path.name} is empty", 'it needs {"messages": [...]} on each line')
    for number, messages in enumerate(chats, start=1):
        if what := _fault(messages):
            raise LabError(what, "compare it with data/train.jsonl", f"line {number} of {path.name}")
    return chats


def _fault(messages: object) -> str:
    if not isinstance(messages, list) or not all(isinstance(turn, dict) for turn in messages):
        return "messages is not a list of turns"
    for turn in messages:
        if turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
            return f"a turn needs a role ({', '.join(ROLES)}) and a content that is text"
    answers = [turn["content"] for turn in messages if turn["role"] == "assistant"]
    return (
        "" if any(answer.strip() for answer in answers) else "the assistant says nothing, so there is nothing to learn"
    )


def encode_all(tokenizer, chats: Sequence[Sequence[dict]], longest: int, name: str) -> list[EncodedChat]:
    """`chats` of the file `name` through the tokenizer's chat template.

    Raises LabError for a tokenizer without a template and for a chat of more than `longest` tokens: half of an answer
    teaches to stop in the middle of it.
    """
    if not tokenizer.chat_template:
        raise LabError("the model's tokenizer has no chat template", "choose an instruct or chat model")
    encoded = [encode_chat(tokenizer, messages) for messages in chats]
    for number, chat in enumerate(encoded, start=1):
        if len(chat) > longest:
            what = f"a chat has {len(chat)} tokens, and {longest} is the most"
            raise LabError(what, "shorten it, or raise --max-length", f"line {number} of {name}")
        if not chat.scored.any():
            what = "the chat template marks no token as the assistant's"
            raise LabError(what, "check the model's chat template", f"line {number} of {name}")
    return encoded


def encode_chat(tokenizer, messages: Sequence[dict]) -> EncodedChat:
    """One chat, its assistant turns scored: by the template's generation markers, else by rendering its beginnings."""
    if GENERATION in tokenizer.chat_template.replace("{%-", "{%").replace("{%generation", GENERATION):
        done = tokenizer.apply_chat_template(
            list(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        return EncodedChat(np.array(done["input_ids"]), np.array(done["assistant_masks"], dtype=bool))
    text, spans = rendered_spans(tokenizer, messages)
    done = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts, ends = np.array(done["offset_mapping"]).T
    scored = np.zeros(len(starts), dtype=bool)
    for start, end in spans:
        scored |= (ends > start) & (starts < end)
    return EncodedChat(np.array(done["input_ids"]), scored)


def rendered_spans(tokenizer, messages: Sequence[dict]) -> tuple[str, list[tuple[int, int]]]:
    """The chat as text, and where in it (characters) the assistant's turns stand, each with its end-of-turn token.

    A turn is what the template adds to the prompt that asks for it, without the white space after it. Raises LabError
    for a template that changes what was said before, as some do with thinking: then no beginning can be found again.
    """

    def render(turns: Sequence[dict], prompt: bool = False) -> str:
        return tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=prompt)

    text, spans = render(messages), []
    for at, turn in enumerate(messages):
        if turn["role"] != "assistant":
            continue
        before, after = render(messages[:at], prompt=True), render(messages[: at + 1])
        if not (after.startswith(before) and text.startswith(after)):
            what = "the chat template renders a chat's beginning otherwise than the whole chat"
            raise LabError(what, "give chats of one answer each, or a template with generation markers")
        spans.append((len(before), max(len(before) + 1, len(after.rstrip()))))
    return text, spans


@dataclass(frozen=True)
class Mixture:
    """The training chats and the replayed ones; the same `seed` gives the same chats to the same step.

    Each epoch has every training chat once, and as many of `replay` that they are `share` of it, taken in turn.
    """

    chats: Sequence[EncodedChat]
    replay: Sequence[EncodedChat]
    share: float
    seed: int
    per_step: int

    @property
    def replayed(self) -> int:
        """Replayed chats in an epoch."""
        return round(len(self.chats) * self.share / (1 - self.share)) if self.replay else 0

    @property
    def steps_per_epoch(self) -> int:
        return -(-(len(self.chats) + self.replayed) // self.per_step)

    def step(self, number: int) -> list[EncodedChat]:
        """The chats of step `number` (0-based), the longest first; the last step of an epoch may have fewer."""
        epoch, at = divmod(number, self.steps_per_epoch)
        chats = self._epoch(epoch)[at * self.per_step : (at + 1) * self.per_step]
        return sorted(chats, key=len, reverse=True)

    def _epoch(self, number: int) -> list[EncodedChat]:
        order = np.random.default_rng(self.seed).permutation(len(self.replay)) if self.replayed else []
        turn = number * self.replayed
        again = [self.replay[order[(turn + at) % len(order)]] for at in range(self.replayed)]
        mixed = [*self.chats, *again]
        return [mixed[at] for at in np.random.default_rng([self.seed, number]).permutation(len(mixed))]


def split_held_out(
    chats: Sequence[EncodedChat], share: float, seed: int
) -> tuple[list[EncodedChat], list[EncodedChat]]:
    """Training and held-out chats, parted by `seed`; at least one held out. Raises LabError where none is left over."""
    count = max(1, round(len(chats) * share))
    if count >= len(chats):
        what = f"{len(chats)} chats are too few to keep {count} of them from training"
        raise LabError(what, "give more chats, or a file of others with --held-out")
    order = np.random.default_rng(seed).permutation(len(chats))
    kept = set(order[:count].tolist())
    return [c for at, c in enumerate(chats) if at not in kept], [c for at, c in enumerate(chats) if at in kept]
