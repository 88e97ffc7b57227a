"""The company's JSON forms, each a JSON Schema in data/forms: a check judges by it, and decoding can be kept to it."""

import json
from functools import cache

from labkit.layout import DATA

FOLDER = DATA / "forms"


@cache
def form_names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


@cache
def schema_of(form: str) -> dict:
    """The JSON Schema of a form in `form_names`."""
    return json.loads((FOLDER / f"{form}.json").read_text(encoding="utf-8"))


def faults_of(value: object, form: str) -> str:
    """What the schema of `form` finds wrong with `value`, in one sentence; empty where nothing is."""
    from jsonschema import Draft202012Validator

    error = next(iter(Draft202012Validator(schema_of(form)).iter_errors(value)), None)
    return f"no valid {form}: {error.message[:200]}" if error else ""
