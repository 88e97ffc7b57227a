"""The automatic checks: small named functions that say pass or fail and why. None passes an empty answer.

In a case's `check` column they are joined by ";", each as `name` or `name:argument`, or as `latency_ms<2000`. The
argument begins after the first ":"; a check without one takes the `expected` column. So an argument cannot hold a ";",
nor begin or end with a space: a pattern for `regex` that does stands in `expected`, where any character may.
"""

import json
import math
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from regex import compile as compile_pattern
from regex import error as PatternError

from labkit.errors import LabError
from labkit.evaluation.forms import faults_of, form_names

# Somebody refuses; a rule that says "cannot be returned" does not.
REFUSAL = re.compile(
    r"\b(I|we) (cannot|can not|can't|will not|won't|must not|do not share|refuse)\b|\b(unable|not able) to\b",
    re.IGNORECASE,
)
CITATION = re.compile(r"\[(POL-\d+)\]")
BULLET = re.compile(r"^\s*(?:[-*\u2022]\s+|\u30fb\s*)\S")  # the Japanese bullet U+30FB needs no space after it
# Letters of each language's script (Unicode's Script property). U+30FC and U+FF70 lengthen a vowel of kana.
KANA = compile_pattern(r"[\p{Hiragana}\p{Katakana}\u30fc\uff70]")
SCRIPTS = {
    "ja": compile_pattern(r"[\p{Hiragana}\p{Katakana}\u30fc\uff70\p{Han}]"),
    "en": compile_pattern(r"\p{Latin}"),
    "el": compile_pattern(r"\p{Greek}"),
    "ko": compile_pattern(r"\p{Hangul}"),
    "th": compile_pattern(r"\p{Thai}"),
}
LETTER = compile_pattern(r"\p{L}")
SCRIPT_SHARE = 0.5  # of the letters, at least
KANA_SHARE = 0.1  # of the letters of Japanese, at least: Chinese has none
# What a pattern may cost. Compiling copies a part with {n} n times, nested counts multiplied, and has no time limit.
PATTERN_CHARACTERS = 1000
PATTERN_COPIES = 100_000
PATTERN_SECONDS = 1.0
ANY_ANSWER = "min_words:1"


@dataclass(frozen=True)
class Answer:
    """What a check looks at: the text and the time it took, milliseconds from request to last token. `pattern_seconds`
    is how long one search of `regex` may take."""

    text: str
    latency_ms: float
    pattern_seconds: float = PATTERN_SECONDS


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


def json_schema(answer: Answer, form: str) -> Verdict:
    """The answer is one JSON value that the schema of `form` describes (labkit.evaluation.forms)."""
    try:
        value = json.loads(answer.text)
    except (ValueError, RecursionError) as error:
        return Verdict(False, "json_schema", f"not JSON: {error}")
    fault = faults_of(value, form)
    return _verdict("json_schema", not fault, f"a valid {form}", fault)


def json_equals(answer: Answer, expected: str) -> Verdict:
    """The answer is JSON and has the same value as `expected`; spaces and key order do not matter."""
    wanted = json.loads(expected)
    try:
        value = json.loads(answer.text)
    except (ValueError, RecursionError) as error:
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


def max_bullets(answer: Answer, count: str) -> Verdict:
    """At least one and at most `count` lines are bullets; other lines, such as a heading, may stand beside them."""
    found = sum(bool(BULLET.match(line)) for line in answer.text.splitlines())
    bad = f"{found} bullets, more than {count}" if found else "no bullets"
    return _verdict("max_bullets", 1 <= found <= int(count), f"{found} bullets, at most {count}", bad)


def language(answer: Answer, code: str) -> Verdict:
    """At least half of the letters belong to the script of the language: ja, en, el (Greek), ko or th.

    It reads scripts, not words. For ja at least a tenth of the letters must be kana too, so Chinese fails; so does
    Japanese in Chinese characters alone, such as an address. en means Latin letters: German or romanised Japanese
    passes as well. It cannot tell whether the text makes sense, and Japanese that is mostly Latin names may fail.
    Digits and punctuation are no letters: an answer of nothing else fails.
    """
    letters = LETTER.findall(answer.text)
    share = sum(bool(SCRIPTS[code].match(letter)) for letter in letters) / max(1, len(letters))
    kana = sum(bool(KANA.match(letter)) for letter in letters)
    if code == "ja" and share >= SCRIPT_SHARE and kana < KANA_SHARE * len(letters):
        return Verdict(False, "language", f"{kana} of {len(letters)} letters are kana: this is hardly Japanese")
    told = f"{share:.0%} of {len(letters)} letters are in the script of {code}"
    return _verdict("language", bool(letters) and share >= SCRIPT_SHARE, told, told)


def regex(answer: Answer, pattern: str) -> Verdict:
    """The pattern is found somewhere in the answer, as by re.search; `\\A` and `\\Z` hold it to the whole answer.

    The search runs in the `regex` package, which can stop at a time limit on every system and in every thread; the
    standard `re` cannot. A search that takes longer fails the case and says so.
    """
    try:
        found = compile_pattern(pattern).search(answer.text, timeout=answer.pattern_seconds)
    except TimeoutError:
        return Verdict(False, "regex", f"the pattern took longer than {answer.pattern_seconds:g} s: make it simpler")
    return _verdict("regex", found is not None, f"has {pattern}", f"nothing matches {pattern}")


def refuses(answer: Answer, _expected: str) -> Verdict:
    """The answer says that it will not or cannot do what was asked."""
    return _verdict("refuses", bool(REFUSAL.search(answer.text)), "refuses", "does not refuse")


def equals(answer: Answer, expected: str) -> Verdict:
    """The answer is `expected` to the letter, outer white space aside: for answers that must never change."""
    return _verdict("equals", answer.text.strip() == expected.strip(), "unchanged", "differs from the fixed answer")


def equals_baseline(answer: Answer, expected: str) -> Verdict:
    """The answer is that of a baseline run, which stands in `expected`, with white space and Unicode forms evened out.

    `equals` holds a wording that we chose to the letter. A baseline was made by another engine and has been through a
    spreadsheet: both change line ends, runs of spaces and full-width forms, and none of these is a changed answer. So
    both texts are brought to Unicode's NFKC and every run of white space to one space.
    """
    same = _evened(answer.text) == _evened(expected)
    return _verdict("equals_baseline", same, "the baseline's answer", "differs from the baseline's answer")


def _evened(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def min_words(answer: Answer, count: str) -> Verdict:
    """The answer has at least `count` words, told apart by white space: not for Japanese, which has none."""
    words = len(answer.text.split())
    return _verdict("min_words", words >= int(count), f"{words} words", f"{words} words, fewer than {count}")


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
        max_bullets,
        language,
        regex,
        refuses,
        equals,
        equals_baseline,
        min_words,
        max_words,
        latency_ms,
    )
}
JSON_FORM = json_schema.__name__
_COUNTED = {"bullets", "max_bullets", "min_words", "max_words"}


def parse_checks(text: str, expected: str) -> tuple[Check, ...]:
    """The checks named in a case's `check` column. Raises LabError for an unknown name or a wrong or missing argument;
    its `where` is "expected" when the fault stands in that column.
    """
    checks = tuple(_parse_one(part.strip(), expected) for part in text.split(";") if part.strip())
    if not checks:
        raise LabError("the case names no check", f"choose from {', '.join(sorted(CHECKS))}")
    return checks


def untimed(text: str) -> str:
    """The checks of a case's `check` column that ask for words: a limit of time judges the machine and what else it
    does. A case that asks for nothing else is left with any answer."""
    parts = [part.strip() for part in text.split(";")]
    return ";".join(part for part in parts if part and not part.startswith(latency_ms.__name__)) or ANY_ANSWER


def _parse_one(part: str, expected: str) -> Check:
    name, _, argument = (part.replace("<", ":", 1) if part.startswith("latency_ms<") else part).partition(":")
    if name not in CHECKS:
        raise LabError(f"there is no check called {name!r}", f"choose from {', '.join(sorted(CHECKS))}")
    argument, column = (argument, "") if argument else (expected, "expected")
    if name in _COUNTED and not re.fullmatch("[1-9][0-9]{0,8}", argument):
        raise LabError(f"the check {name} needs a number, not {argument!r}", f"write for example {name}:3")
    if name == "latency_ms" and not re.fullmatch("[0-9]{1,9}([.][0-9]+)?", argument):
        raise LabError(f"the check {name} needs a number, not {argument!r}", f"write for example {name}<2000")
    if name == JSON_FORM and argument not in form_names():
        raise LabError(f"there is no form called {argument!r}", f"choose from {', '.join(form_names())}")
    if name == "language" and argument not in SCRIPTS:
        raise LabError(f"no script tells the language {argument!r}", f"choose from {', '.join(SCRIPTS)}")
    if name == "json_equals" and not isinstance(json.loads(argument), dict):
        raise LabError("the expected JSON is not an object", 'write for example {"order_id": "1"}', column)
    if name != "refuses" and not argument.strip():
        raise LabError(f"the check {name} has nothing to compare with", "fill in the expected column")
    if name == "regex":
        _refuse_bad_pattern(argument, column)
    return Check(name, argument, CHECKS[name])


def _refuse_bad_pattern(pattern: str, column: str) -> None:
    if len(pattern) > PATTERN_CHARACTERS:
        what = f"the pattern has {len(pattern)} characters, more than {PATTERN_CHARACTERS}"
        raise LabError(what, "use several checks", column)
    counts = [int(count) for count in re.findall("{([0-9]+)", "".join(pattern.split()))]
    if math.prod(max(1, count) for count in counts) > PATTERN_COPIES:
        what = f"the counts in braces of {pattern!r} multiply to more than {PATTERN_COPIES}"
        raise LabError(what, "use smaller counts, or several checks", column)
    try:
        empty = compile_pattern(pattern).search("", timeout=PATTERN_SECONDS)
    except (PatternError, ValueError, OverflowError, RecursionError, TimeoutError) as error:
        raise LabError(f"{pattern!r} is not a usable pattern: {error}", "mend the regular expression", column) from None
    if empty:
        what = f"the pattern {pattern!r} is found in an empty answer too"
        raise LabError(what, "let it ask for at least one character", column)


def judge(answer: Answer, checks: tuple[Check, ...]) -> Verdict:
    """The first check that fails decides; when all pass, their reasons are joined."""
    if not answer.text.strip():
        return Verdict(False, "empty", "the answer is empty")
    verdicts = [check.run(answer, check.argument) for check in checks]
    failed = next((verdict for verdict in verdicts if not verdict.passed), None)
    return failed or Verdict(True, verdicts[-1].kind, "; ".join(verdict.reason for verdict in verdicts))
