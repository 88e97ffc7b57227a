"""inference_model.json and its schema, checked without loading a model."""

import json
from pathlib import Path

import jsonschema

from labkit.errors import LabError

INFERENCE_MODEL = "inference_model.json"
SCHEMA = Path(__file__).parent.parent / "templates" / "inference_model.schema.json"


def check_inference_model(value: object) -> None:
    """Raises LabError, naming the field, where `value` is not as the schema has it."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    problem = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(value))
    if problem is not None:
        place = "/".join(map(str, problem.absolute_path)) or "the whole file"
        raise LabError(f"{INFERENCE_MODEL}, {place}: {problem.message[:200]}", "mend that field")
