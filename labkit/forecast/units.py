"""The units in which the work of a lesson is counted. Each is measured on the machine that makes a forecast."""

from dataclasses import dataclass
from enum import StrEnum


class Unit(StrEnum):
    """The value is what a person reads. What a GPU can speed up is in COMPUTE; the rest is the host's."""

    KERNEL = "process started that loads all libraries of a lesson"
    PROCESS = "process started that loads torch"
    FIGURE = "figure drawn"
    WRITE = "file entered into the pack"
    WAIT = "second of waiting for a time-out"
    PROBE = "second of measuring for this forecast"
    LOAD = "chat model loaded"
    SERVER = "server started and stopped"
    PREPARE = "text tokenized for training"
    MINI_TOKENS = "thousand training tokens, mini GPT-2 of the size mini"
    TINY_TOKENS = "thousand training tokens, mini GPT-2 of the size tiny"
    TUNING = "fine-tuning begun and saved"
    LORA_STEP = "step of LoRA"
    FULL_STEP = "step that trains every weight"
    NF4_STEP = "step of LoRA on a base in 4 bits"
    CASE_ALONE = "case answered, float32, one at a time"
    CASE = "case answered, float32, eight together"
    CASE_SCHEMA = "case answered within a schema, eight together"
    CASE_INT8 = "case answered in int8, eight together"
    CASE_NF4 = "case answered in 4 bits, eight together"
    CASE_HTTP = "case answered by the server, one client"


TRAINING = frozenset({Unit.MINI_TOKENS, Unit.TINY_TOKENS, Unit.LORA_STEP, Unit.FULL_STEP, Unit.NF4_STEP})
ANSWERS = frozenset({unit for unit in Unit if unit.name.startswith("CASE")})
COMPUTE = TRAINING | ANSWERS


@dataclass(frozen=True)
class Work:
    """`amount` of a unit, and what in the lesson asks for it."""

    unit: Unit
    amount: float
    why: str
