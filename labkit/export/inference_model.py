"""inference_model.json and its schema, checked without loading a model."""

import json
from pathlib import Path

import jsonschema

from labkit.errors import LabError
from labkit.evidence import read_json

INFERENCE_MODEL = "inference_model.json"
SCHEMA = Path(__file__).parent.parent / "templates" / "inference_model.schema.json"


def check_inference_model(value: object) -> None:
    """Raises LabError, naming the field, where `value` is not as the schema has it."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    problem = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(value))
    if problem is not None:
        place = "/".join(map(str, problem.absolute_path)) or "the whole file"
        raise LabError(f"{INFERENCE_MODEL}, {place}: {problem.message[:200]}", "mend that field")


def read_inference_model(folder: Path) -> dict:
    """Raises LabError for a folder without the file, or with one that the schema refuses."""
    held = read_json(Path(folder) / INFERENCE_MODEL)
    check_inference_model(held)
    return held
