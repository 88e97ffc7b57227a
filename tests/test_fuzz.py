"""The server under requests that nobody thought of: it answers or refuses as its document says, and never fails.

LABKIT_FUZZ_CASES sets how many requests are made. The few of every run only show that the proof itself works.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import httpx
import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_tool_calls import HERMES_TEMPLATE
from tiny_server import HELLO, live

from labkit.serving.contract import Limits

CASES = int(os.environ.get("LABKIT_FUZZ_CASES", "40"))
MANY = CASES >= 1000  # new ones each time; the few are always the same
PATIENCE = 600.0  # seconds for a request on a busy machine
RULES = Path(__file__).parent / "schemathesis.toml"
ANSWERS = ("/v1/chat/completions", "/v1/completions")


@pytest.fixture(scope="module", params=[8])
def url(tiny_model, request):
    """A server of answers with so many tokens at most. One request at a time, all the time it takes: no 503, no 504."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_model.tokenizer, "chat_template", HERMES_TEMPLATE)
        with live(tiny_model, Limits(1500, request.param, 16384, PATIENCE, concurrency=2, queue=0)) as base_url:
            yield base_url


def test_the_server_keeps_to_its_own_document(url, tmp_path):
    """No 5xx, no status and no body that /openapi.json does not tell, and nothing taken that it forbids."""
    har = tmp_path / "requests.har"
    phases = ["--phases", "coverage,fuzzing"] if MANY else ["--phases", "fuzzing", "--generation-deterministic"]
    fuzz = [Path(sys.executable).with_name("st"), "--config-file", RULES, "run", f"{url}/openapi.json", "--no-color"]
    more = ["--continue-on-failure", "--request-timeout", str(PATIENCE), "--report-har-path", har]
    run = subprocess.run(
        [*fuzz, "--max-examples", str(CASES // 2), *phases, *more], capture_output=True, text=True, cwd=tmp_path
    )
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr
    made = Counter()
    for entry in json.loads(har.read_text())["log"]["entries"]:
        made[httpx.URL(entry["request"]["url"]).path, entry["response"]["status"]] += 1
    print(made)
    assert made.total() >= CASES
    assert not [status for _, status in made if status >= 500]
    for path in ANSWERS:  # neither all answered nor all refused
        assert made[path, 200]
        assert made[path, 400]


FEW = st.integers(-1, 4)
NAMES = st.sampled_from(["a", "b c", '"', "\\", "ü", ""])
VALUES = st.none() | st.booleans() | st.integers(-9, 10**20) | st.floats(-1, 1) | NAMES
FLAT = st.one_of(
    st.booleans(),
    st.fixed_dictionaries({"enum": st.lists(VALUES, max_size=3)}),
    st.fixed_dictionaries({"$ref": st.sampled_from(["#", "#/properties/a", "http://other/schema"])}),
    st.fixed_dictionaries(
        {"type": st.just("string")},
        optional={"minLength": FEW, "maxLength": FEW, "pattern": st.sampled_from(["^a+$", "b", "[", "(?=a)"])},
    ),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["integer", "number", "null", "nothing"])},
        optional={"minimum": FEW, "exclusiveMaximum": FEW, "multipleOf": FEW},
    ),
)


def nested(schemas):
    return st.one_of(
        st.fixed_dictionaries({"anyOf": st.lists(schemas, max_size=2)}, optional={"oneOf": st.lists(schemas)}),
        st.fixed_dictionaries({"type": st.just("array")}, optional={"items": schemas, "minItems": FEW}),
        st.fixed_dictionaries(
            {"type": st.just("object"), "properties": st.dictionaries(NAMES, schemas, max_size=2)},
            optional={"required": st.lists(NAMES, max_size=2), "additionalProperties": schemas, "maxProperties": FEW},
        ),
    )


@pytest.mark.parametrize("url", [60], indirect=True)
@settings(
    max_examples=CASES, derandomize=not MANY, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
@given(schema=st.recursive(FLAT, nested, max_leaves=4), seed=st.integers(0, 9), called=st.booleans())
def test_a_schema_is_kept_or_refused(url, schema, seed, called):
    """Whatever the schema is: an answer that fits it (or is cut at its length), or a 400. The model is random."""
    if called:
        tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
        body = {"tools": [tool], "tool_choice": "required"}
    else:
        body = {"response_format": {"type": "json_schema", "json_schema": {"name": "f", "schema": schema}}}
    asked = {"messages": HELLO, "temperature": 1, "seed": seed, **body}
    response = httpx.post(f"{url}/v1/chat/completions", json=asked, timeout=PATIENCE)
    assert response.status_code in (200, 400), response.text
    if response.status_code == 200 and (choice := response.json()["choices"][0])["finish_reason"] != "length":
        said = choice["message"]["tool_calls"][0]["function"]["arguments"] if called else choice["message"]["content"]
        with contextlib.suppress(RecursionError, ZeroDivisionError):  # a schema that names itself, or a multiple of 0
            jsonschema.Draft202012Validator(schema).validate(json.loads(said))
