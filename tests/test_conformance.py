"""Each verdict on a server that earns it: our own, and small ones that misbehave on purpose."""

import contextlib
import json
import random
import select
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO

import pytest
from rich.console import Console

from labkit.cli import main
from labkit.conformance import NOT_PROVED, PROBES, Probe, Verdict, conformance, feature_rows, refusals
from labkit.errors import LabError
from labkit.evidence import read_json, read_manifest
from labkit.report.service import print_conformance

BY_NAME = {probe.feature: probe for probe in PROBES}
FITTING = '{"colour": "red", "count": 1}'
USAGE = ("prompt_tokens", "completion_tokens", "total_tokens")


class Fake(BaseHTTPRequestHandler):
    """A model that counts. It keeps OpenAI's API but for `server.flaws`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def flaw(self, name):
        return name in self.server.flaws

    def do_GET(self):
        self.server.clients.append(self.client_address)
        if self.path == "/v1/models" and self.flaw("page"):
            self.send(200, self.server.flaws[-1], "<html>Welcome</html>")
        elif self.path == "/v1/models" and not self.flaw("no models"):
            self.reply(200, {"object": "list", "data": [{"id": "counter", "object": "model"}]})
        elif self.path == "/metrics" and not self.flaw("no metrics"):
            self.send(200, "text/plain", "# TYPE requests counter\nrequests 1\n")
        elif self.path == "/openapi.json":
            self.reply(200, {"openapi": "3.1.0", "paths": {"/v1/chat/completions": {}}})
        else:
            self.reply(200 if self.path == "/health" else 404, {"status": "ok"})

    def do_POST(self):
        try:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        except ValueError:
            return self.refuse(422 if self.flaw("422") else 400, "no JSON")
        if self.path == "/v1/completions":
            return self.reply(200, {"choices": [{"text": "x"}]})
        if "messages" not in asked and self.flaw("500"):
            return self.send(500, "text/plain", "Internal Server Error")
        if "messages" not in asked and self.flaw("hangs up"):
            self.close_connection = True
            return None
        if self.flaw("busy") and (asked.get("n") == 2) and not self.server.told.is_set():
            self.server.told.set()
            return self.send(429, "text/plain", "slow down", {"Retry-After": "1"})
        fault = next(self.faults(asked), None)
        return self.refuse(*fault) if fault else self.chat(asked)

    def faults(self, asked):
        if asked.get("model") != "counter":
            yield 404, "no such model"
        if "messages" not in asked or not isinstance(asked.get("temperature", 0), int | float):
            yield 400, "a wrong value"
        if asked.get("max_tokens", 1) < 1 or ("no_such_parameter" in asked and not self.flaw("takes all")):
            yield 400, "a wrong value"
        if self.prompt_tokens(asked) > 500 and not self.flaw("cuts"):
            yield 400, "too long"
        if asked.get("temperature", 1) > 1 and self.flaw("cool"):
            yield 400, "at most 1"
        if asked.get("n", 1) > 1 and self.flaw("refuses n"):
            yield 400, "n is not supported"

    def refuse(self, status, message):
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": "bad"}
        self.reply(status, {"detail": message} if self.flaw("shape") else {"error": error})

    def prompt_tokens(self, asked):
        messages = [m for m in asked["messages"] if m["role"] != "tool" or not self.flaw("deaf")]
        contents = [message["content"] for message in messages]
        if not self.flaw("parts"):
            contents = [self.flat(c) if isinstance(c, list) else c for c in contents]
        if self.flaw("system"):
            contents = contents[-1:]
        tools = asked.get("tools", []) if not self.flaw("tools") else []
        return min(len(f"{contents}{tools}".split()), 600 if not self.flaw("cuts") else 50)

    def flat(self, parts):
        """The parts as one text in which an image is three words, or with a flaw nothing, or its address."""
        shown = (part.get("text", "" if self.flaw("blind") else "an image here") for part in parts)
        addresses = (len(part["image_url"]["url"]) * "x " for part in parts if "image_url" in part)
        return " ".join([*filter(None, shown), *(addresses if self.flaw("reads URLs") else ())])

    def words(self, asked):
        if "response_format" in asked and not self.flaw("json"):
            return [FITTING] if not self.flaw("fit") else ['{"colour": "blue", "count": 1}']
        words = [f"{number} " for number in range(1, 21)]
        if asked.get("temperature", 1) > (1.5 if self.flaw("sure") else 0) and not self.flaw("cold"):
            seed = None if self.flaw("seed") else asked.get("seed")
            penalties = (
                None if self.flaw("penalty") else (asked.get("presence_penalty"), asked.get("frequency_penalty"))
            )
            random.Random(None if seed is None else f"{seed} {penalties}").shuffle(words)
        return words[: None if self.flaw("limit") else asked.get("max_tokens", asked.get("max_completion_tokens"))]

    def answer(self, asked):
        """The pieces of the answer, and its finish_reason."""
        words, reason = self.words(asked), "stop"
        if len(words) < 20 and words[0] != FITTING:
            reason = "length"
        stops = [asked["stop"]] if isinstance(asked.get("stop"), str) else asked.get("stop", [])
        text = "".join(words)
        for stop in stops:
            if stop in text and not self.flaw("stop"):
                text, reason = text[: text.index(stop) + len(stop) * self.flaw("leak")], "stop"
        half = len(text) // 2
        return [text[:half], text[half:]], reason, len(words)

    def message(self, asked, text):
        message = {"role": "assistant", "content": text}
        if isinstance(asked.get("tool_choice"), dict) and not self.flaw("forced"):
            arguments = "red" if self.flaw("arguments") else FITTING
            call = {"id": "c", "type": "function", "function": {"name": "paint", "arguments": arguments}}
            message |= {"content": None, "tool_calls": [call]}
        return message

    def chat(self, asked):
        if not self.work(asked.get("max_tokens", 0)):
            return
        pieces, reason, tokens = self.answer(asked)
        prompt = self.prompt_tokens(asked)
        usage = dict(zip(USAGE, (prompt, tokens, prompt + tokens + self.flaw("sum")), strict=True))
        if asked.get("stream") and not self.flaw("no stream"):
            self.send(200, "text/event-stream", "".join(self.events(asked, pieces, reason, usage)))
            return
        token = {"token": "1", "logprob": -0.5, "top_logprobs": [{}, {}]}
        logprobs = {"content": [token]} if asked.get("logprobs") and not self.flaw("logprobs") else None
        message = self.message(asked, "".join(pieces))
        count = asked.get("n", 1) if not self.flaw("n") else 1
        choice = {"message": message, "finish_reason": reason, "logprobs": logprobs}
        head = {"id": "x", "object": "chat.completion", "created": 1, "model": "counter"}
        self.reply(200, {**head, "choices": [{"index": i, **choice} for i in range(count)], "usage": usage})

    def events(self, asked, pieces, reason, usage):
        deltas = [{"role": "assistant", "content": ""}, *({"content": piece} for piece in pieces), {}]
        for delta in deltas:
            choice = {"index": 0, "delta": delta, "finish_reason": None if delta else reason}
            yield self.event({"choices": [choice], **({"usage": usage} if self.flaw("usage always") else {})})
        if asked.get("stream_options") and not self.flaw("usage never"):
            yield self.event({"choices": [], "usage": usage})
        if not self.flaw("no DONE"):
            yield "data: [DONE]\n\n"

    def event(self, chunk):
        return f"data: {json.dumps(chunk)}\n\n"

    def work(self, tokens):
        """Take the only slot for a while; False when the client has left, unless the flaw is to work on."""
        with self.server.slot:
            for _ in range(20 if self.flaw("slow") else 0):
                time.sleep(tokens * 3e-5)
                gone = select.select([self.connection], [], [], 0)[0] and not self.connection.recv(1, socket.MSG_PEEK)
                if gone and not self.flaw("works on"):
                    return False
        return True

    def reply(self, status, body):
        self.send(status, "application/json", json.dumps(body))

    def send(self, status, content_type, text, headers=None):
        self.send_response(status)
        for name, value in {"Content-Type": content_type, "Content-Length": len(text), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(text.encode())


class FakeServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        pass  # clients leave on purpose


@contextlib.contextmanager
def fake(*flaws):
    with FakeServer(("127.0.0.1", 0), Fake) as server:
        server.flaws, server.clients = flaws, []
        server.slot, server.told = threading.Lock(), threading.Event()
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
            posted = server.clients[1:]
            assert len(posted) == len(set(posted)), "a connection was used again"
        finally:
            server.shutdown()


def findings(url, *features, probes=()):
    found = conformance(url, probes=[*(BY_NAME[feature] for feature in features), *probes])
    return {row["feature"]: (row["verdict"], row["detail"]) for row in found["findings"]}


# Our own server


def test_what_our_own_server_does_is_supported(server):
    right = ("/v1/models", "/health", "content as text", "system role", "max_tokens", "max_completion_tokens", "stop")
    more = ("stop list", "stop streamed", "finish_reason", "temperature 0", "temperature 2", "seed", "usage")
    stream = ("chunks", "[DONE]", "same answer", "usage when asked", "usage only when asked")
    errors = ("malformed JSON", "missing messages", "unknown model", "wrong type", "unknown parameter", "wrong method")
    found = findings(server.base_url, *right, *more, *stream, *errors, "negative max_tokens", "wrong content type")
    assert {feature: outcome for feature, outcome in found.items() if outcome[0] != "supported"} == {}
    assert found["finish_reason"][1] == "'length' at max_tokens, 'stop' at a stop text"


def test_a_clear_refusal_is_refused_and_quotes_the_server(server):
    audio = Probe("chat", "audio", lambda wire: wire.answer(modalities=["audio"]), "sound")
    verdict, detail = findings(server.base_url, probes=[audio])["audio"]
    assert verdict == "refused"
    assert detail.startswith("400: ")
    assert "modalities" in detail


# Servers that misbehave on purpose

FLAWS = [
    ("no metrics", "/metrics", "not offered", "404"),
    ("parts", "content as parts", "wrong", "prompt tokens"),
    ("blind", "image part", "ignored", "are those without it"),
    ("reads URLs", "image part", "wrong", "read as text"),
    ("system", "system role", "ignored", "are those without it"),
    ("deaf", "tool message", "ignored", "whatever the tool's result says"),
    ("limit", "max_tokens", "ignored", "5 tokens asked for, 20 answered"),
    ("limit", "max_completion_tokens", "ignored", "20 answered"),
    ("stop", "stop", "ignored", "goes on after"),
    ("leak", "stop", "wrong", "is in the answer"),
    ("leak", "stop streamed", "wrong", "is in the answer"),
    ("cold", "temperature 2", "ignored", "different answers to 3 requests: 1"),
    ("cold", "seed", "partly", "one answer"),
    ("seed", "seed", "ignored", "two different answers"),
    ("n", "n", "ignored", "1 choice"),
    ("refuses n", "n", "refused", "400: n is not supported"),
    ("logprobs", "logprobs", "ignored", "no choices[0].logprobs.content"),
    ("penalty", "presence_penalty", "ignored", "neither"),
    ("seed", "frequency_penalty", "partly", "chance"),
    ("cold", "frequency_penalty", "partly", "too sure"),
    ("cool", "temperature 2", "refused", "400: at most 1"),
    ("sum", "usage", "wrong", "total"),
    ("no stream", "chunks", "ignored", "no events, but application/json"),
    ("no DONE", "[DONE]", "wrong", "without data: [DONE]"),
    ("usage always", "usage only when asked", "wrong", "4 chunks"),
    ("usage always", "usage when asked", "partly", "not on the last chunk alone"),
    ("usage never", "usage when asked", "ignored", "no chunk has usage"),
    ("json", "json_object", "ignored", "no JSON"),
    ("json", "json_schema", "ignored", "no JSON"),
    ("fit", "json_schema", "ignored", "does not fit"),
    ("tools", "tools, auto", "ignored", "not told of it"),
    ("forced", "tools, forced", "ignored", "no call"),
    ("arguments", "tools, forced", "wrong", "no JSON: 'red'"),
    ("422", "malformed JSON", "partly", "422 instead of 400"),
    ("500", "missing messages", "wrong", "500: Internal Server Error"),
    ("hangs up", "missing messages", "wrong", "no answer: RemoteProtocolError"),
    ("shape", "unknown model", "partly", "the error lacks message, type, param, code"),
    ("takes all", "unknown parameter", "ignored", "answered with 200"),
    ("cuts", "prompt too long", "ignored", "600 words became 50 tokens"),
]


@pytest.fixture(scope="module")
def faultless():
    with fake() as url:
        yield findings(url, *{feature for _, feature, _, _ in FLAWS})


@pytest.mark.parametrize(("flaw", "feature", "verdict", "detail"), FLAWS)
def test_a_flaw_is_named(faultless, flaw, feature, verdict, detail):
    assert faultless[feature][0] == "supported", faultless[feature]
    with fake(flaw) as url:
        found = findings(url, feature)[feature]
    assert (found[0], detail in found[1]) == (verdict, True), found


def test_a_server_that_works_on_for_clients_that_left_is_found(monkeypatch):
    def left(kind, *flaws):
        with fake(*flaws) as url:
            return findings(url, f"client leaves {kind}")[f"client leaves {kind}"]

    assert left("a stream", "slow")[0] == "supported"
    assert left("an answer", "slow", "works on")[0] == "wrong"
    monkeypatch.setattr(refusals, "VISIBLE_SECONDS", 5.0)  # a loaded machine stands still for some tenths
    assert left("a stream")[1].startswith("cannot be observed")


@pytest.mark.parametrize("trait", ["sure", "cool"])
def test_a_sure_model_or_one_that_refuses_temperature_2_does_not_ignore_a_parameter(trait):
    with fake(trait) as url:
        found = findings(url, "seed", "presence_penalty")
    assert {verdict for verdict, _ in found.values()} == {"supported"}


def test_a_busy_server_is_asked_again_when_it_says_so():
    with fake("busy") as url:
        assert findings(url, "n")["n"][0] == "supported"


def test_a_key_is_asked_for_or_not(monkeypatch):
    with fake() as url:
        assert findings(url, "wrong key")["wrong key"][0] == "not offered"
        monkeypatch.setenv("LABKIT_API_KEY", "right")
        assert findings(url, "wrong key")["wrong key"][0] == "ignored"


def test_a_server_that_dies_meanwhile_is_a_finding():
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(fake())

        def probes():
            yield BY_NAME["/v1/models"]
            stack.close()
            yield BY_NAME["/health"]

        rows = conformance(url, probes=probes())["findings"]
    assert [row["verdict"] for row in rows] == ["supported", "wrong"]
    assert rows[1]["detail"].startswith("no answer: ConnectError")


def test_an_answer_that_cannot_be_read_is_a_finding():
    strange = Probe("chat", "strange", lambda wire: wire.answer().body["nothing"]["there"], "anything")
    with fake() as url:
        assert findings(url, probes=[strange])["strange"] == ("wrong", "the answer could not be read (KeyError)")


def test_no_server_and_no_model_are_clear_errors(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["labkit", "conform", "--base-url", "http://127.0.0.1:9", "--out", str(tmp_path / "x")]
    )
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "error: no server answers" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    with fake("no models") as url:
        with pytest.raises(LabError, match="refused with 404"):
            conformance(url)
        assert conformance(url, "counter", [BY_NAME["/v1/models"]])["counts"]["not offered"] == 1
    for content_type in ("text/html", "application/json"):
        with fake("page", content_type) as url, pytest.raises(LabError, match="no list of models"):
            conformance(url)


# The report


def test_the_table_fits_80_columns_counts_and_says_what_it_does_not_prove():
    with fake() as url:
        found = conformance(url, probes=[BY_NAME["content as parts"], BY_NAME["[DONE]"], BY_NAME["unknown model"]])
    assert found["counts"] == {verdict: 3 * (verdict == "supported") for verdict in Verdict}
    found["findings"][0]["detail"] = "[red]a stranger's text[/red] " * 5
    console = Console(file=StringIO(), width=80)
    print_conformance(found, console)
    printed = console.file.getvalue()
    assert max(map(len, printed.splitlines())) <= 80
    assert "[red]" in printed
    assert "3 supported, 0 partly, 0 ignored, 0 refused, 0 wrong, 0 not offered" in printed
    assert " ".join(printed.split()).endswith(NOT_PROVED)


def test_a_small_table_names_what_is_supported_and_says_why_the_rest_is_not():
    with fake("n") as url:
        found = conformance(url, probes=[BY_NAME["n"], BY_NAME["seed"], BY_NAME["usage"], BY_NAME["[DONE]"]])
    chat, stream = feature_rows(found)
    assert (chat["group"], chat["supported"]) == ("chat", "seed, usage")
    assert chat["not, or not fully"] == "n (ignored: 1 choice for n = 2)"
    assert (stream["supported"], stream["not, or not fully"]) == ("[DONE]", "")


@pytest.mark.parametrize(("flaw", "words", "code"), [("n", (), 0), ("n", ("--strict",), 1)])
def test_the_command_writes_the_artifact_and_is_strict_when_asked(tmp_path, monkeypatch, capsys, flaw, words, code):
    with fake(flaw) as url:
        monkeypatch.setattr(sys, "argv", ["labkit", "conform", "--base-url", url, "--out", str(tmp_path), *words])
        with pytest.raises(SystemExit) as stopped:
            main()
    assert stopped.value.code == code
    printed = capsys.readouterr().out
    written = read_json(tmp_path / "conformance.json")
    assert [row["feature"] for row in written["findings"]] == [probe.feature for probe in PROBES]
    assert all(row["feature"] in printed for row in written["findings"])
    assert written["counts"]["ignored"] == 1
    assert "conformance.json" in read_manifest(tmp_path)["files"]
