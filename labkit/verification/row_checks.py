"""Whether answers fit what is said of them: an answer cannot be longer than its tokens, nor begin after it ended.

Whoever replaces an answer by the expected text seldom thinks of the columns beside it.
"""

import re
from functools import cache, lru_cache

from labkit.evidence import finite, sha256_of
from labkit.layout import MODELS
from labkit.verification import answer_checks as answers
from labkit.verification import service_checks as service
from labkit.verification.reading import PackReader, number
from labkit.verification.verdicts import Contradiction, NotYet

_RUNS = re.compile(r"(?:levers|edge)/[^/]{1,80}/eval_results\.csv")
_COLUMNS = ("case_id", "output", "latency_ms", "completion_tokens")
_SETTINGS = {"model": "model", "revision": "revision", "backend": "backend", "quantization": "dtype"}
SPARE_WORDS = 1  # words beyond the tokens: no tokenizer of an open model joins two words into one token
SPARE_TOKENS = 4  # by which an answer may have more tokens when it is encoded anew; measured: 2
UNSEEN_TOKENS = 12  # tokens of an answer that its text may not show: special ones, blanks at its end; measured: 2
MOST_ALIKE = 5  # different latencies from which on two runs that have them all are one
ROUNDED = 0.11  # milliseconds: two times, each rounded to a tenth
EMBEDDED = MODELS / "mini-instruct"


def check_rows(pack: PackReader) -> str:
    """Each answer of the evaluation, and of the runs of 13.6 and 13.7, fits its tokens, its times and its settings."""
    rows = service.result_rows(pack)
    _check_settings(pack, rows)
    told, seen = 0, {}
    for name in (service.RESULTS, *(name for name in pack.entries if _RUNS.fullmatch(name) and pack.exists(name))):
        for row in (held := pack.rows(name, _COLUMNS)):
            _check_row(row, f"{name} {row['case_id'][:40]}")
        _check_copied(name, held, seen)
        told += len(held)
    _check_encoded(rows)
    return f"{told} answers fit their tokens and times"


def _check_row(row: dict[str, str], where: str) -> None:
    tokens, took = (number(row[key], f"{key} in {where}") for key in ("completion_tokens", "latency_ms"))
    words = len(row["output"].split())
    if answers.REDACTED not in row["output"] and words > tokens + SPARE_WORDS:
        raise Contradiction(f"{where} has an answer of {words} words in {tokens:g} tokens")
    require_possible(where, tokens, took, finite(row.get("ttft_ms")), finite(row.get("max_tokens")))


def require_possible(where: str, tokens: float, took: float, first: float | None, most: float | None) -> None:
    """An answer takes time (ms), its first token does not come after its last, and it has at most `most` tokens."""
    if tokens and not took:
        raise Contradiction(f"{where} has {tokens:g} tokens in no time")
    if first is not None and first > took + ROUNDED:
        raise Contradiction(f"{where} has its first token after {first:g} ms and its last after {took:g} ms")
    if most and tokens > most:
        raise Contradiction(f"{where} has {tokens:g} tokens, and {most:g} were allowed")


def _check_copied(name: str, rows: list[dict[str, str]], seen: dict[tuple, tuple[str, tuple]]) -> None:
    """No two runs took the same time for every case, to the tenth of a millisecond, unless they are one run."""
    times = tuple(row["latency_ms"] for row in rows)
    settings = tuple(rows[0].get(key) for key in ("model", "revision", "backend", "quantization", "levers"))
    if len(set(times)) >= MOST_ALIKE:
        other, theirs = seen.setdefault(times, (name, settings))
        if theirs != settings:
            raise Contradiction(f"{name} has the latencies of {other}, case for case, and is said to be another run")


def _check_settings(pack: PackReader, rows: list[dict[str, str]]) -> None:
    """Backend, number format and levers of the rows, where they say them, are those of the summary."""
    summary = pack.json(service.SUMMARY) if pack.exists(service.SUMMARY) else {}
    for row in rows:
        for column, key in _SETTINGS.items():
            if row.get(column) and summary.get(key) and row[column] != str(summary[key]):
                what = f"{service.RESULTS} says {column} {row[column][:40]} for {row['case_id'][:40]}"
                raise Contradiction(f"{what}, {service.SUMMARY} says {str(summary[key])[:40]}")
        for key in ("temperature", "top_p", "max_tokens"):
            asked, done = finite((summary.get("settings") or {}).get(key)), finite(row.get(key))
            if None not in (asked, done) and asked != done:
                what = f"{service.RESULTS} says {key} {done:g} for {row['case_id'][:40]}"
                raise Contradiction(f"{what}, {service.SUMMARY} says {asked:g}")
        if row.get("levers") and "levers" in summary and (row["levers"] != "plain") != bool(summary["levers"]):
            said = ", ".join(map(str, summary["levers"])) or "none"
            what = f"{service.RESULTS} has answers with the levers {row['levers'][:40]}"
            raise Contradiction(f"{what}, {service.SUMMARY} names {said[:40]}")


def _check_encoded(rows: list[dict[str, str]]) -> None:
    """The workbook has the tokenizer of its own model: an answer of it is encoded anew, and its tokens are counted."""
    if rows[0]["revision"] != embedded_revision():
        return
    for row in rows:
        if answers.REDACTED in row["output"]:
            continue
        said, found = float(row["completion_tokens"]), _encoded(row["output"])
        what = f"{service.RESULTS} {row['case_id'][:40]} says {said:g} tokens, its answer has {found}"
        if found > said + SPARE_TOKENS:
            raise Contradiction(what)
        if said > found + UNSEEN_TOKENS:
            raise NotYet(what)


@cache
def embedded_revision() -> str:
    """The revision of the embedded model, as its runs record it; "" where the workbook has no weights of it."""
    weights = EMBEDDED / "model.safetensors"
    return sha256_of(weights)[:12] if weights.is_file() else ""


@cache
def _tokenizer():
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))


@lru_cache(maxsize=1024)
def _encoded(text: str) -> int:
    return len(_tokenizer().encode(text, add_special_tokens=False).ids)
