"""The automatic checks: small named functions that say pass or fail and why. None passes an empty answer.

In a case's `check` column they are joined by ";", each as `name` or `name:argument`, or as `latency_ms<2000`.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from labkit.errors import LabError

# JSON keys and the type of each, for the forms that the company uses.
SCHEMAS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "refund_form": {"order_id": str, "customer": str, "item": str, "reason": str, "amount": (int, float)},
}
# Somebody refuses; a rule that says "cannot be returned" does not.
REFUSAL = re.compile(
    r"\b(I|we) (cannot|can not|can't|will not|won't|must not|do not share|refuse)\b|\b(unable|not able) to\b",
    re.IGNORECASE,
)
CITATION = re.compile(r"\[(POL-\d+)\]")
BULLET = re.compile(r"^\s*[-*\u2022]\s+\S", re.MULTILINE)


@dataclass(frozen=True)
class Answer:
    """What a check looks at: the text and the time it took, milliseconds from request to last token."""

    text: str
    latency_ms: float


@dataclass(frozen=True)
class Verdict:
    """`kind` names the check that failed (or the last one that passed); `reason` is one sentence for a reader."""

    passed: bool
    kind: str
    reason: str


@dataclass(frozen=True)
class Check:
    name: str
    argument: str
    run: Callable[[Answer, str], Verdict]


def _verdict(name: str, passed: bool, good: str, bad: str) -> Verdict:
    return Verdict(passed, name, good if passed else bad)


def contains_all(answer: Answer, expected: str) -> Verdict:
    """Every part of `expected`, separated by "|", stands in the answer; case does not matter."""
    missing = [part for part in expected.split("|") if part.strip().lower() not in answer.text.lower()]
    return _verdict("contains_all", not missing, "every expected part is there", f"missing: {', '.join(missing)}")


def excludes(answer: Answer, expected: str) -> Verdict:
    """None of the parts of `expected`, separated by "|", stands in the answer."""
    found = [part for part in expected.split("|") if part.strip().lower() in answer.text.lower()]
    return _verdict("excludes", not found, "nothing forbidden is there", f"must not contain: {', '.join(found)}")


def cites(answer: Answer, note_id: str) -> Verdict:
    """The answer cites `note_id` in brackets and no other note."""
    found = set(CITATION.findall(answer.text))
    said = ", ".join(sorted(found)) or "no note"
    return _verdict("cites", found == {note_id}, f"cites {note_id}", f"cites {said} instead of {note_id}")


def json_schema(answer: Answer, schema: str) -> Verdict:
    """The answer is one JSON object with exactly the keys and types of `schema`."""
    try:
        value = json.loads(answer.text)
    except ValueError as error:
        return Verdict(False, "json_schema", f"not JSON: {error}")
    if not isinstance(value, dict) or set(value) != set(SCHEMAS[schema]):
        return Verdict(False, "json_schema", f"not exactly the keys {', '.join(SCHEMAS[schema])}")
    wrong = [key for key, kind in SCHEMAS[schema].items() if not isinstance(value[key], kind) or value[key] is True]
    return _verdict("json_schema", not wrong, f"a valid {schema}", f"wrong type: {', '.join(wrong)}")


def json_equals(answer: Answer, expected: str) -> Verdict:
    """The answer is JSON and has the same value as `expected`; spaces and key order do not matter."""
    wanted = json.loads(expected)
    try:
        value = json.loads(answer.text)
    except ValueError as error:
        return Verdict(False, "json_equals", f"not JSON: {error}")
    if not isinstance(value, dict):
        return Verdict(False, "json_equals", "not a JSON object")
    wrong = [key for key in wanted if value.get(key) != wanted[key]] + [key for key in value if key not in wanted]
    return _verdict("json_equals", not wrong, "every field is right", f"wrong field: {', '.join(wrong)}")


def bullets(answer: Answer, count: str) -> Verdict:
    """The answer is exactly `count` bullet lines and nothing else."""
    lines = [line for line in answer.text.splitlines() if line.strip()]
    good = len(lines) == int(count) and all(BULLET.match(line) for line in lines)
    return _verdict("bullets", good, f"exactly {count} bullets", f"{len(lines)} lines, not {count} bullets")


def refuses(answer: Answer, _expected: str) -> Verdict:
    """The answer says that it will not or cannot do what was asked."""
    return _verdict("refuses", bool(REFUSAL.search(answer.text)), "refuses", "does not refuse")


def equals(answer: Answer, expected: str) -> Verdict:
    """The answer is `expected` to the letter, outer white space aside: for answers that must never change."""
    return _verdict("equals", answer.text.strip() == expected.strip(), "unchanged", "differs from the fixed answer")


def max_words(answer: Answer, count: str) -> Verdict:
    words = len(answer.text.split())
    return _verdict("max_words", words <= int(count), f"{words} words", f"{words} words, more than {count}")


def latency_ms(answer: Answer, limit: str) -> Verdict:
    """The whole answer took less than `limit` milliseconds."""
    took = f"{answer.latency_ms:.0f} ms"
    return _verdict("latency_ms", answer.latency_ms < float(limit), f"took {took}", f"took {took}, limit {limit} ms")


CHECKS: dict[str, Callable[[Answer, str], Verdict]] = {
    function.__name__: function
    for function in (
        contains_all,
        excludes,
        cites,
        json_schema,
        json_equals,
        bullets,
        refuses,
        equals,
        max_words,
        latency_ms,
    )
}
_NUMERIC = {"bullets", "max_words", "latency_ms"}


def parse_checks(text: str, expected: str) -> tuple[Check, ...]:
    """The checks named in a case's `check` column. Raises LabError for an unknown name or a missing argument."""
    checks = tuple(_parse_one(part.strip(), expected) for part in text.split(";") if part.strip())
    if not checks:
        raise LabError("the case names no check", f"choose from {', '.join(sorted(CHECKS))}")
    return checks


def _parse_one(part: str, expected: str) -> Check:
    name, _, argument = (part.replace("<", ":", 1) if part.startswith("latency_ms<") else part).partition(":")
    if name not in CHECKS:
        raise LabError(f"there is no check called {name!r}", f"choose from {', '.join(sorted(CHECKS))}")
    argument = argument or expected
    if name in _NUMERIC and not argument.replace(".", "", 1).isdigit():
        raise LabError(f"the check {name} needs a number, not {argument!r}", f"write for example {name}:3")
    if name == "json_schema" and argument not in SCHEMAS:
        raise LabError(f"there is no form called {argument!r}", f"choose from {', '.join(SCHEMAS)}")
    if name == "json_equals":
        json.loads(argument)
    if name != "refuses" and not argument.strip():
        raise LabError(f"the check {name} has nothing to compare with", "fill in the expected column")
    return Check(name, argument, CHECKS[name])


def judge(answer: Answer, checks: tuple[Check, ...]) -> Verdict:
    """The first check that fails decides; when all pass, their reasons are joined."""
    if not answer.text.strip():
        return Verdict(False, "empty", "the answer is empty")
    verdicts = [check.run(answer, check.argument) for check in checks]
    failed = next((verdict for verdict in verdicts if not verdict.passed), None)
    return failed or Verdict(True, verdicts[-1].kind, "; ".join(verdict.reason for verdict in verdicts))
