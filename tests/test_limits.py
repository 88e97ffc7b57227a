"""The table of broken limits: a server that keeps its contract, and documents that promise something else."""

import httpx
import pytest
from tiny_server import SMALL, live

from labkit.conformance import Held, break_limits, limits
from labkit.errors import LabError
from labkit.serving.contract import Limits

KEY = "a-key"
TIGHT = Limits(80, 2000, 4096, request_seconds=1, concurrency=1, queue=1, requests_per_minute=40)


def contract(url, key=None):
    return httpx.get(f"{url}/contract", headers={"Authorization": f"Bearer {key}"}).json()


def rows(document, *keep, key=None):
    """The rows by their limit; only those of `keep` are made where it is given."""
    with pytest.MonkeyPatch.context() as patched:
        if keep:
            patched.setattr(limits, "TRIALS", [trial for trial in limits.TRIALS if trial.limit in keep])
        return {row.limit: row for row in break_limits(document, key)}


def changed(document, **changes):
    return document | {"limits": document["limits"] | changes}


@pytest.fixture(scope="module")
def url(tiny_model):
    with live(tiny_model, SMALL) as url:
        yield url


def test_every_limit_of_a_tight_contract_is_refused_as_it_says(tiny_model):
    with live(tiny_model, TIGHT, api_keys=(KEY,)) as url:
        found = rows(contract(url, KEY), key=KEY)
        health = httpx.get(f"{url}/health").json()
    assert {name: (row.status, row.code, row.held) for name, row in found.items()} == {
        "max_input_tokens": (400, "context_length_exceeded", Held.YES),
        "max_output_tokens": (400, "invalid_value", Held.YES),
        "max_body_bytes": (413, "body_too_large", Held.YES),
        "concurrency, queue": (503, "server_busy", Held.YES),
        "request_seconds": (408, "body_timeout", Held.YES),
        "unknown parameter": (400, "unsupported_parameter", Held.YES),
        "another model": (404, "model_not_found", Held.YES),
        "missing key": (401, "invalid_api_key", Held.YES),
        "requests_per_minute": (429, "rate_limit_exceeded", Held.YES),
    }
    assert found["max_output_tokens"].sent == "max_tokens 2001"
    assert found["max_output_tokens"].message == "max_tokens is 2001; the limit is 2000"
    assert found["max_body_bytes"].sent == "a body of 4097 bytes"
    assert found["concurrency, queue"].sent == "3 requests at once; 1 are answered, 1 may wait"
    assert health["running"] + health["waiting"] <= 1  # a client that has left is noticed within a token


def test_what_the_contract_gives_no_ground_for_is_not_tried_and_says_why(url):
    found = rows(contract(url), "request_seconds", "missing key", "requests_per_minute")
    assert {row.held for row in found.values()} == {Held.NOT_TRIED}
    assert {name: row.message for name, row in found.items()} == {
        "request_seconds": "it takes 30 s, and this table waits at most 5 s",
        "missing key": "the contract asks for no key",
        "requests_per_minute": "the contract sets no such limit",
    }


@pytest.mark.parametrize(
    ("limit", "changes", "said"),
    [
        ("max_input_tokens", {"max_input_tokens": 4000}, "has more bytes than max_body_bytes"),
        ("concurrency, queue", {"concurrency": 500}, "502 clients at once"),
        ("requests_per_minute", {"requests_per_minute": 900}, "it takes 901 requests"),
    ],
)
def test_a_limit_that_costs_too_much_to_break_is_not_tried(url, limit, changes, said):
    row = rows(changed(contract(url), **changes), limit)[limit]
    assert (row.held, row.sent, said in row.message) == (Held.NOT_TRIED, "nothing", True)


@pytest.mark.parametrize(
    ("limit", "changes", "status"),
    [
        ("max_output_tokens", {"max_output_tokens": 20}, 200),
        ("max_body_bytes", {"max_body_bytes": 2000}, 200),
        ("concurrency, queue", {"concurrency": 2, "queue": 5}, None),
    ],
)
def test_a_document_that_promises_another_limit_is_found_out(url, limit, changes, status):
    row = rows(changed(contract(url), **changes), limit)[limit]
    assert (row.status, row.held) == (status, Held.NO)
    assert status or "fewer places than the contract says; 503: " in row.message


def test_another_code_than_the_contract_promises_is_not_held(url):
    document = contract(url)
    document["errors"].pop("404")
    row = rows(document, "another model")["another model"]
    assert (row.status, row.code, row.held) == (404, "model_not_found", Held.NO)


def test_a_rate_that_is_used_up_is_no_proof_of_another_limit(tiny_model):
    with live(tiny_model, Limits(80, 40, 4096, 30, 1, 1, requests_per_minute=2)) as url:
        found = rows(contract(url), "max_output_tokens", "unknown parameter", "requests_per_minute")
    assert [row.held for row in found.values()] == [Held.YES, Held.NOT_TRIED, Held.YES]
    assert found["unknown parameter"].message.startswith("the limit on requests per minute answered first: 2 requests")


def test_refusals_prove_nothing_where_a_right_request_is_refused(tiny_model):
    with live(tiny_model, SMALL, api_keys=(KEY,)) as url:
        document = contract(url, KEY)
        with pytest.raises(LabError, match="within its limits: 401: send the server's key"):
            break_limits(document)
    with pytest.raises(LabError, match="within its limits: no answer: ConnectError"):
        break_limits(document, KEY)


def test_a_request_that_gets_no_answer_is_not_held():
    wire = limits.Wire("http://127.0.0.1:9", "none")
    with wire.http:
        service = limits.Service(wire, {"errors": {}, "limits": {}}, patience=1)
        row = limits.Trial("unknown parameter", "unsupported_parameter", limits.unknown_parameter).row(service)
    assert (row.status, row.held) == (None, Held.NO)
    assert row.message.startswith("no answer: ConnectError")
