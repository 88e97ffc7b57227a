"""The limits of a service contract, each broken once on the running server: is it refused as the contract says?

Each request is made from the contract document (service_contract.json, or GET /contract), and so is the answer that is
right: the status under which the document's `errors` name the code. `TRIALS` is one table; a new limit is a new row.
"""

import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from http.client import HTTPConnection
from urllib.parse import urlsplit

import httpx2

from labkit.conformance.findings import Settled, Verdict, one_line
from labkit.conformance.wire import CHAT, MESSAGES, Reply, Wire, at
from labkit.errors import LabError

MOST_CLIENTS, MOST_REQUESTS = 64, 200  # a limit that takes more to break is not tried
ATTEMPTS = 3  # a small model may have answered everybody before its clients overlap
LONGEST_HOLD = 30.0  # seconds for which a client keeps its stream while another is to be refused
RATE_CODE = "rate_limit_exceeded"


class Held(StrEnum):
    """Whether the server kept the limit: NO is an answer that the contract does not promise."""

    YES = "yes"
    NO = "no"
    NOT_TRIED = "not tried"


@dataclass(frozen=True)
class BrokenLimit:
    """One limit, the request that goes past it and the answer. `status` is None where no HTTP answer came.

    Of a limit that was not tried, `message` says why.
    """

    limit: str
    sent: str
    status: int | None
    code: str | None
    message: str
    held: Held


class NotTried(Exception):
    """Raised by a trial that the contract gives no ground for, or that takes too long. The message is the reason."""


@dataclass(frozen=True)
class Service:
    """A running server, its contract, and how many seconds one trial may wait."""

    wire: Wire
    contract: Mapping
    patience: float

    def limit(self, name: str) -> int | float:
        """Raises NotTried for a limit that the contract does not set; 0 sets none."""
        value = self.contract["limits"].get(name) or 0
        if not value:
            raise NotTried("the contract sets no such limit")
        return value

    def chat(self, **changes: object) -> Reply:
        return self.wire.once("POST", CHAT, json=self.short(**changes))

    def short(self, **changes: object) -> dict:
        return self.wire.body(**{"max_tokens": 1} | changes)

    def promised(self, code: str) -> int | None:
        """The status of `code` in the contract's errors, which read "code: meaning; code: meaning"."""
        for status, meanings in self.contract["errors"].items():
            if code in [meaning.partition(":")[0].strip() for meaning in meanings.split(";")]:
                return int(status)
        return None


@dataclass(frozen=True)
class Trial:
    """One row of the table: `send` goes past `limit` and gives what it sent in words, and the answer."""

    limit: str
    code: str
    send: Callable[[Service], tuple[str, Reply]]

    def row(self, service: Service) -> BrokenLimit:
        """Never raises for what the server does."""
        try:
            sent, reply = self.send(service)
        except NotTried as reason:
            return BrokenLimit(self.limit, "nothing", None, None, str(reason), Held.NOT_TRIED)
        except Settled as failure:
            return BrokenLimit(self.limit, "a request", None, None, one_line(failure.outcome[1]), Held.NO)
        code, message = at(reply.body, "error", "code"), at(reply.body, "error", "message") or reply.text
        held = Held.YES if (reply.status, code) == (service.promised(self.code), self.code) else Held.NO
        if code == RATE_CODE != self.code:
            held, message = Held.NOT_TRIED, f"the limit on requests per minute answered first: {message}"
        return BrokenLimit(self.limit, sent, reply.status, code, one_line(message), held)


def input_tokens(service: Service) -> tuple[str, Reply]:
    words = service.limit("max_input_tokens") + 1  # each is a token or more
    messages = [{"role": "user", "content": "a " * words}]
    if len(json.dumps(messages)) > service.limit("max_body_bytes"):
        raise NotTried(f"a prompt of {words} tokens has more bytes than max_body_bytes")
    return f"a prompt of {words} words", service.chat(messages=messages)


def output_tokens(service: Service) -> tuple[str, Reply]:
    tokens = service.limit("max_output_tokens") + 1
    return f"max_tokens {tokens}", service.chat(max_tokens=tokens)


def body_bytes(service: Service) -> tuple[str, Reply]:
    size = service.limit("max_body_bytes") + 1
    body = json.dumps(service.short()).encode()
    headers = {"Content-Type": "application/json"}
    return f"a body of {size} bytes", service.wire.once("POST", CHAT, content=body.ljust(size), headers=headers)


def at_once(service: Service) -> tuple[str, Reply]:
    """One client more than there are places; the others leave as soon as one has been refused."""
    concurrency, queue = service.limit("concurrency"), service.contract["limits"].get("queue") or 0
    clients = concurrency + queue + 1
    if clients > MOST_CLIENTS:
        raise NotTried(f"it takes {clients} clients at once, and this table sends at most {MOST_CLIENTS}")
    for _ in range(ATTEMPTS):
        refused = Crowd(service, clients).refused()
        if len(refused) > 1:
            what = f"{len(refused)} of {clients} requests at once were refused: fewer places than the contract says"
            raise Settled(Verdict.WRONG, f"{what}; {refused[0].said}")
        if refused:
            return f"{clients} requests at once; {concurrency} are answered, {queue} may wait", refused[0]
    raise NotTried(f"{clients} requests at once were answered before they overlapped")


class Crowd:
    """Clients that ask at once for a long streamed answer and keep their places until one is refused."""

    def __init__(self, service: Service, clients: int):
        most = service.limit("max_output_tokens")
        # Hot, so that an answer seldom ends early.
        self._body = service.short(messages=MESSAGES, max_tokens=most, temperature=2, stream=True)
        self._wire, self._clients = service.wire, clients
        self._over, self._taken = threading.Event(), []

    def refused(self) -> list[Reply]:
        """What the clients got that were not answered. Raises Settled when one gets no HTTP answer."""
        with ThreadPoolExecutor(self._clients) as pool:
            return [reply for reply in pool.map(lambda _: self._ask(), range(self._clients)) if reply]

    def _ask(self) -> Reply | None:
        try:
            with self._wire.http.stream("POST", CHAT, json=self._body) as response:
                if response.status_code == 200:
                    self._keep_place()
                    return None
                return Reply(response.status_code, "", response.read().decode("utf-8", "replace"))
        except httpx2.HTTPError as error:
            raise Settled(Verdict.WRONG, f"no answer: {type(error).__name__}: {error}") from None
        finally:
            self._over.set()

    def _keep_place(self) -> None:
        self._taken.append(True)
        if len(self._taken) < self._clients:
            self._over.wait(LONGEST_HOLD)


def seconds(service: Service) -> tuple[str, Reply]:
    """The first half of a body: the only request that outlasts the limit on a machine of any speed."""
    most = service.limit("request_seconds")
    if most > service.patience:
        raise NotTried(f"it takes {most:g} s, and this table waits at most {service.patience:g} s")
    address = urlsplit(str(service.wire.http.base_url))
    connection = HTTPConnection(address.hostname, address.port, timeout=most + service.patience)
    headers = {"Content-Type": "application/json", "Content-Length": "100"}
    if key := service.wire.http.headers.get("Authorization"):
        headers["Authorization"] = key
    try:
        connection.request("POST", CHAT, b'{"messages": [', headers)
        response = connection.getresponse()
        return f"half a body, and no more for {most:g} s", Reply(response.status, "", response.read().decode())
    except OSError as error:
        raise Settled(Verdict.WRONG, f"no answer: {error!r}") from None
    finally:
        connection.close()


def unknown_parameter(service: Service) -> tuple[str, Reply]:
    return "no_such_parameter: 1", service.chat(no_such_parameter=1)


def unknown_model(service: Service) -> tuple[str, Reply]:
    return "model: no-such-model", service.chat(model="no-such-model")


def missing_key(service: Service) -> tuple[str, Reply]:
    if str(service.contract.get("authorization", "none")).startswith("none"):
        raise NotTried("the contract asks for no key")
    return "no key", service.wire.once("POST", CHAT, json=service.short(), headers={"Authorization": ""})


def per_minute(service: Service) -> tuple[str, Reply]:
    """Ask until it is refused; what the other trials sent within the minute counts too."""
    most = service.limit("requests_per_minute")
    if most > MOST_REQUESTS:
        raise NotTried(f"it takes {most + 1} requests, and this table sends at most {MOST_REQUESTS}")
    replies = [service.chat()]
    while replies[-1].status == 200 and len(replies) <= most:
        replies.append(service.chat())
    return f"{len(replies)} more requests in a row", replies[-1]


TRIALS = (
    Trial("max_input_tokens", "context_length_exceeded", input_tokens),
    Trial("max_output_tokens", "invalid_value", output_tokens),
    Trial("max_body_bytes", "body_too_large", body_bytes),
    Trial("concurrency, queue", "server_busy", at_once),
    Trial("request_seconds", "body_timeout", seconds),
    Trial("unknown parameter", "unsupported_parameter", unknown_parameter),
    Trial("another model", "model_not_found", unknown_model),
    Trial("missing key", "invalid_api_key", missing_key),
    Trial("requests_per_minute", RATE_CODE, per_minute),  # last: it uses up the minute
)


def break_limits(contract: Mapping, api_key: str | None = None, patience: float = 5.0) -> list[BrokenLimit]:
    """Go past each limit of `contract` once, on the server at its base_url; takes seconds.

    `api_key` is LABKIT_API_KEY where it is not given. A limit on requests per minute is used up for this key
    afterwards. Raises LabError where the server does not answer a request that keeps every limit: refusals would then
    prove nothing.
    """
    wire = Wire(contract["endpoint"]["base_url"], contract["model"], api_key)
    with wire.http:
        service = Service(wire, contract, patience)
        _require_answer(service)
        return [trial.row(service) for trial in TRIALS]


def _require_answer(service: Service) -> None:
    try:
        reply = service.chat()
        said = None if reply.status == 200 else reply.said
    except Settled as failure:
        said = failure.outcome[1]
    if said:
        what = f"the contract's server does not answer a request within its limits: {said}"
        raise LabError(what, "start it with `labkit serve`; LABKIT_API_KEY must hold its key where it has one")
