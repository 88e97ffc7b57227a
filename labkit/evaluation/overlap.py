"""Whether training has seen an evaluation prompt: the same words, or nearly the same.

Two prompts are near duplicates when their sets of word shingles have a Jaccard similarity of at least NEAR (Broder
1997, "On the resemblance and containment of documents"). A case that training has seen proves memory, not skill.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabError

SHINGLE, NEAR = 4, 0.8  # words in a shingle; the share of common shingles from which two prompts are near duplicates


@dataclass(frozen=True)
class Match:
    """A training prompt that meets an evaluation prompt. `exact`: the same words in the same order."""

    training: str
    evaluation: str
    similarity: float
    exact: bool


@dataclass(frozen=True)
class TrainingData:
    """The prompts of a file of chats, one for each chat, and how many chats differ from all others."""

    prompts: tuple[str, ...]
    different: int


def words(text: str) -> list[str]:
    """Words of Latin letters and digits in lower case; of other scripts, which set no spaces, each character."""
    return re.findall(r"[a-z0-9]+|[^\W_a-z0-9]", text.lower())


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    """Every run of SHINGLE words; of a shorter text the text itself."""
    found = words(text)
    return frozenset(tuple(found[at : at + SHINGLE]) for at in range(max(1, len(found) - SHINGLE + 1)))


def similarity(one: str, other: str) -> float:
    """The Jaccard similarity of two texts' shingles, 0 to 1."""
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


def find_overlap(training: Iterable[str], evaluation: Sequence[str], near: float = NEAR) -> Iterator[Match]:
    """Each pair of a training and an evaluation prompt whose similarity is at least `near`.

    Counted through an index from shingle to evaluation prompt, so that the cost grows with what is common.
    """
    wanted, spoken = [shingles(prompt) for prompt in evaluation], [words(prompt) for prompt in evaluation]
    index: dict[tuple[str, ...], list[int]] = {}
    for number, pieces in enumerate(wanted):
        for piece in pieces:
            index.setdefault(piece, []).append(number)
    for prompt in training:
        pieces, own = shingles(prompt), words(prompt)
        common = Counter(number for piece in pieces for number in index.get(piece, ()))
        for number, count in common.items():
            share = count / len(pieces | wanted[number])
            if share >= near:
                yield Match(prompt, evaluation[number], share, own == spoken[number])


def read_training(path: Path) -> TrainingData:
    """The prompts (what the user says) of a JSONL file of chats: `{"messages": [{"role", "content"}, ...]}` a line.

    Raises LabError that names the first line that is none.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise LabError(f"{path.name} is missing", "give the file of chats with --train") from None
    except (OSError, UnicodeDecodeError) as error:
        raise LabError(f"{path.name} is not readable JSONL: {error}", "save it as UTF-8, one chat a line") from None
    chats = [_chat(line, f"{path.name}, line {at}") for at, line in enumerate(lines, start=1) if line.strip()]
    return TrainingData(tuple(prompt for prompt, _ in chats), len(set(chats)))


def _chat(line: str, where: str) -> tuple[str, str]:
    """What the user says, and everything that is said."""
    try:
        messages = json.loads(line)["messages"]
        said = [(str(message["role"]), str(message["content"])) for message in messages]
    except (ValueError, KeyError, TypeError, RecursionError):
        shape = '{"messages": [{"role": "user", "content": "..."}, ...]}'
        raise LabError("this is not a chat", f"write one object a line, such as {shape}", where) from None
    asked = "\n".join(content for role, content in said if role == "user")
    if not asked.strip():
        raise LabError("this chat has no question of a user", "give each chat a message of the role user", where)
    return asked, json.dumps(said)
