"""For promptfoo: one configuration, with an assertion for each check that has an equivalent among its own.

Types of assertions and how prompts are rendered: promptfoo.dev/docs/configuration, seen on 2026-11-27.
"""

import json
import re
from pathlib import Path

import yaml

from labkit.endpoint import KEY_VARIABLE
from labkit.evaluation.cases import Case
from labkit.evaluation.checks import JSON_FORM, REFUSAL, Check, parse_checks
from labkit.evaluation.export.plan import Export, readme, write_files
from labkit.evaluation.forms import schema_of

CONFIG = "promptfooconfig.yaml"
PROMPT = "prompt.json"
BULLET = r"/^\s*(?:[-*\u2022]\s+|\u30fb\s*)\S/"  # as checks.BULLET
LINES = "output.split(/\\r?\\n/).filter(line => line.trim())"
WORDS = "output.trim().split(/\\s+/).length"
# What Python's `regex` has and JavaScript has not, or means otherwise by the same letters.
OTHER_SYNTAX = re.compile(r"\(\?(?![:=!])|\\[AZpPXhRKGQ]|[+*?}]\+|\[\[|&&|\\N")
COMMAND = f"npx promptfoo@latest eval --no-cache -c {CONFIG}"

Assertion = dict[str, object]


def write_promptfoo(export: Export, folder: Path) -> str:
    """Write promptfooconfig.yaml, prompt.json and README.md into `folder`; returns the command that runs them."""
    tests, left_out = [], list(export.left_out)
    for case in export.cases:
        checks = parse_checks(case.check, case.expected)
        translated = [(check, assertions_for(check)) for check in checks]
        left_out += [_untold(case, check, checks) for check, found in translated if not found]
        if wanted := [assertion for _, found in translated for assertion in found]:
            tests.append(_test(export, case, wanted))
    config = {
        "description": f"labkit's cases ({export.levers.label})",
        "prompts": [f"file://{PROMPT}"],
        "providers": [_provider(export)],
        "defaultTest": {"assert": [{"type": "regex", "value": r"\S"}]},  # no check passes on an empty answer
        "tests": tests,
    }
    words = ["promptfoo downloads itself; latencies are measured only without its cache."]
    files = {
        CONFIG: yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=120),
        PROMPT: json.dumps(_prompt(export), indent=2, ensure_ascii=False) + "\n",
        "README.md": readme("The cases for promptfoo", COMMAND, words, left_out),
    }
    write_files(folder, files)
    return COMMAND


def _provider(export: Export) -> dict:
    sampling = export.sampling
    decoding = {"temperature": sampling.temperature, "max_tokens": sampling.max_tokens, "top_p": sampling.top_p}
    server = {"apiBaseUrl": export.base_url, "apiKeyEnvar": KEY_VARIABLE}
    return {"id": f"openai:chat:{export.model}", "config": {**server, **decoding, "seed": sampling.seed}}


def _prompt(export: Export) -> list[dict[str, str]]:
    """Valid JSON: promptfoo then puts the question into the text of the last turn, whatever characters it has."""
    before = export.levers.prompt.messages_for("")[:-1] if export.levers.prompt else []
    literal = [{"role": turn["role"], "content": _literal(turn["content"])} for turn in before]
    return [*literal, {"role": "user", "content": "{{question}}"}]


def _test(export: Export, case: Case, wanted: list[Assertion]) -> dict:
    return {
        "description": case.case_id,
        "metadata": {"risk": case.risk},
        "vars": {"question": _literal(export.question(case))},
        "assert": wanted,
    }


def _untold(case: Case, check: Check, checks: tuple[Check, ...]) -> str:
    rest = "its other checks are judged" if len(checks) > 1 else "the case is left out where nothing else is judged"
    return f"`{case.case_id}`: `{check.name}` has no equivalent; {rest}"


def assertions_for(check: Check) -> list[Assertion]:
    """The assertions that together judge what `check` does; none where promptfoo has no equivalent."""
    name, argument = check.name, check.argument
    parts = [_literal(part.strip()) for part in argument.split("|")]
    match name:
        case "contains_all":
            return [{"type": "icontains-all", "value": parts}]
        case "excludes":
            return [{"type": "not-icontains-any", "value": parts}]
        case "cites":
            others = rf"\[(?!{re.escape(argument)}\])POL-\d+\]"
            return [{"type": "contains", "value": f"[{argument}]"}, {"type": "not-regex", "value": others}]
        case "json_equals":
            return [{"type": "is-json"}, {"type": "equals", "value": json.loads(argument)}]
        case "equals":
            return [{"type": "regex", "value": _literal(rf"^\s*{_escaped(argument.strip())}\s*$")}]
        case "regex":
            return [] if OTHER_SYNTAX.search(argument) else [{"type": "regex", "value": _literal(argument)}]
        case "latency_ms":
            return [{"type": "latency", "threshold": float(argument)}]
    if name == JSON_FORM:
        return [{"type": "is-json", "value": schema_of(argument)}]
    return [{"type": "javascript", "value": code}] if (code := _code(check)) else []


def _code(check: Check) -> str:
    """JavaScript that judges the text `output` as the check does; empty for language and equals_baseline, whose
    tables of Unicode are better left in one place."""
    count = check.argument
    return {
        "refuses": f"/{REFUSAL.pattern}/i.test(output)",
        "bullets": f"{LINES}.length === {count} && {LINES}.every(line => {BULLET}.test(line))",
        "max_bullets": f"(n => n >= 1 && n <= {count})({LINES}.filter(line => {BULLET}.test(line)).length)",
        "min_words": f"{WORDS} >= {count}",
        "max_words": f"{WORDS} <= {count}",
    }.get(check.name, "")


def _escaped(text: str) -> str:
    """For JavaScript's expressions, which know fewer escapes than Python's."""
    return re.sub(r"([\\^$.|?*+()\[\]{}/])", r"\\\1", text)


def _literal(text: str) -> str:
    """`text` as promptfoo's templates (Nunjucks) leave it."""
    return f"{{% raw %}}{text}{{% endraw %}}" if re.search(r"\{[{%#]", text) else text
