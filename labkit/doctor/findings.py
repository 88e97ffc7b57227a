"""What a check is asked, and what it finds."""

from dataclasses import dataclass
from enum import StrEnum

from labkit.landscape.models import EMBEDDED


class State(StrEnum):
    """`NOT_HERE` is no verdict: the check needs something that this machine lacks, such as a GPU. A `LIMIT` is true of
    this machine or model, and the workbook runs without what is missing."""

    OK = "ok"
    PROBLEM = "problem"
    LIMIT = "limit"
    NOT_HERE = "not here"


@dataclass(frozen=True)
class Question:
    """What the learner is about: the model they want to run and the port they want to serve it on."""

    model: str = EMBEDDED
    port: int = 8000


@dataclass(frozen=True)
class Finding:
    """One check's answer: what was seen on this machine, and for a problem what to do about it."""

    check: str
    state: State
    seen: str
    next_step: str = ""


def ok(check: str, seen: str) -> Finding:
    return Finding(check, State.OK, seen)


def problem(check: str, seen: str, next_step: str) -> Finding:
    return Finding(check, State.PROBLEM, seen, next_step)


def not_here(check: str, why: str) -> Finding:
    return Finding(check, State.NOT_HERE, why)
