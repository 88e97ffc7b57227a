"""Prompts with a name and a version: the first lever, and the cheapest to take back.

A prompt that is edited in place makes two runs incomparable without a trace. Here a variant is a file, a run records
its name and version, and what was really asked goes into the run's id.
"""

from dataclasses import dataclass
from pathlib import Path

import yaml

from labkit.errors import LabError
from labkit.layout import DATA

PROMPTS = DATA / "prompts"
FIELDS = ("name", "version", "system", "examples")
TURNS = ("user", "assistant")
Message = dict[str, str]


@dataclass(frozen=True)
class PromptVariant:
    """What stands before a question: a system prompt, and examples as pairs of a user's and the assistant's text."""

    name: str
    version: str
    system: str = ""
    examples: tuple[tuple[str, str], ...] = ()

    @property
    def label(self) -> str:
        """How records name it."""
        return f"{self.name} {self.version}"

    def messages_for(self, question: str) -> list[Message]:
        """The system prompt, the examples as turns of the conversation, and the question as the last turn."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        turns = [
            {"role": role, "content": text} for pair in self.examples for role, text in zip(TURNS, pair, strict=True)
        ]
        return [*system, *turns, {"role": "user", "content": question}]


def prompt_names() -> tuple[str, ...]:
    """The variants that are shipped."""
    return tuple(sorted(path.stem for path in PROMPTS.glob("*.yaml")))


def find_prompt(named: str) -> PromptVariant:
    """The shipped variant called `named`, or the one in the YAML file at that path. Raises LabError for neither."""
    if named in prompt_names():
        return read_prompt(PROMPTS / f"{named}.yaml")
    path = Path(named).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        raise LabError(f"there is no prompt called {named!r}", f"choose {', '.join(prompt_names())}, or a YAML file")
    return read_prompt(path)


def read_prompt(path: Path) -> PromptVariant:
    """The variant in a YAML file. Raises LabError, with file and field, for the first thing that is wrong."""
    values = _read_mapping(path)
    for field in values:
        if field not in FIELDS:
            raise LabError("a prompt has no such field", f"use {', '.join(FIELDS)}", f"{path.name}, field {field}")
    for field in ("name", "version"):
        if field not in values:
            raise LabError(f"the prompt has no {field}", "give it one, so that runs can say which it was", path.name)
    if isinstance(values["version"], int) and not isinstance(values["version"], bool):
        values["version"] = str(values["version"])
    texts = {field: _text(values.get(field, ""), f"{path.name}, field {field}") for field in FIELDS[:3]}
    for field in ("name", "version"):
        if not texts[field] or "\n" in texts[field]:
            raise LabError(f"the {field} must be one line of text", "write it", f"{path.name}, field {field}")
    examples = _examples(values.get("examples") or [], path.name)
    if not texts["system"] and not examples:
        raise LabError("the prompt changes nothing", "give a system prompt, or examples", path.name)
    return PromptVariant(**texts, examples=examples)


def _read_mapping(path: Path) -> dict:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise LabError(f"{path.name} is missing", "give the path of a YAML file", path.parent.name) from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        told = " ".join(str(error).split())[:200]
        raise LabError(f"{path.name} is not readable YAML: {told}", "save it as UTF-8, and mend that place") from None
    if not isinstance(values, dict):
        raise LabError(f"{path.name} holds no fields", f"use {', '.join(FIELDS)}")
    return values


def _examples(found: object, name: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(found, list):
        raise LabError("examples must be a list of user and assistant texts", "begin each with -", f"{name}, examples")
    pairs = []
    for number, pair in enumerate(found, start=1):
        place = f"{name}, field examples, number {number}"
        if not isinstance(pair, dict) or set(pair) != set(TURNS):
            raise LabError("an example has the fields user and assistant, and no other", "write both", place)
        user, assistant = (_text(pair[role], f"{place}, {role}") for role in TURNS)
        if not user or not assistant:
            raise LabError("an example has an empty text", "write both sides, or drop the example", place)
        pairs.append((user, assistant))
    return tuple(pairs)


def _text(value: object, place: str) -> str:
    """`value` without white space around it. YAML reads 1.0 and yes as no text."""
    if not isinstance(value, str):
        raise LabError(f"{value!r} is no text"[:80], "put it in quotes", place)
    return value.strip()
