"""Clients that do not read: after the time of the contract they hold no slot, no request and no connection."""

import contextlib
import json
import logging
import socket
import time
from contextlib import closing
from dataclasses import replace

import httpx
import psutil
import pytest
from fastapi import FastAPI, Response
from tiny_server import HELLO, LONG, chat, live, until

from labkit.generation import Sampling
from labkit.serving import connections
from labkit.serving.app import create_app
from labkit.serving.ports import tcp_connections

SECONDS = 3.0
KEPT_BYTES = 4096  # by the server for a client, so that the tiny model fills it soon
LARGE = 2**19  # bytes: far more than that
STREAM = {"messages": HELLO, "stream": True, "max_tokens": 3000, "logprobs": True, "top_logprobs": 20}
LOGS = ("labkit.serving", "uvicorn.error")


class Kept(logging.Handler):
    """What the server's log says of requests."""

    def __init__(self):
        super().__init__()
        self.records, self.text = [], ""

    def emit(self, record):
        self.records.append(getattr(record, "fields", {}))
        self.text += record.getMessage()

    def cut(self, path):
        return [record["cut"] for record in self.records if record.get("path") == path]


@pytest.fixture(scope="module")
def log():
    kept, loggers = Kept(), [logging.getLogger(name) for name in LOGS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(kept)
        logger.setLevel(logging.INFO)
    yield kept
    for logger, level in zip(loggers, before, strict=True):
        logger.removeHandler(kept)
        logger.setLevel(level)


@pytest.fixture(scope="module")
def url(tiny_model, log):
    """A server with a page that is too large for its buffers."""
    with pytest.MonkeyPatch.context() as patch:

        def with_large_page(*words) -> FastAPI:
            app = create_app(*words)
            app.add_api_route("/large", lambda: Response(b"x" * LARGE))
            return app

        patch.setattr("tiny_server.create_app", with_large_page)
        patch.setattr(connections, "UNREAD_BYTES", KEPT_BYTES)
        tiny_model.chat(HELLO, Sampling(max_tokens=1))  # the first token is many times slower than the rest
        with live(tiny_model, replace(LONG, request_seconds=SECONDS)) as base_url:
            logging.getLogger("uvicorn.error").setLevel(logging.INFO)  # `live` asks for less
            yield base_url


@pytest.fixture(scope="module")
def unread(url):
    """Three clients that read nothing, at once: of a stream, of one page, of three pages asked for together."""
    asked = [request("/v1/chat/completions", STREAM), request("/large"), request("/large") * 3]
    with contextlib.ExitStack() as held:
        yield time.monotonic(), [held.enter_context(closing(connect(url, words))) for words in asked]


def connect(url, sent):
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.settimeout(20)
    client.connect(("127.0.0.1", httpx.URL(url).port))
    client.sendall(sent)
    return client


def request(path, body=None):
    if body is None:
        return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    content = json.dumps(body).encode()
    kind, size = "Content-Type: application/json", f"Content-Length: {len(content)}"
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{kind}\r\n{size}\r\n\r\n".encode() + content


def connected(client, url):
    """Whether the server, which lives in this process, has the other end of the client's connection."""
    mine = client.getsockname()[1]
    found = tcp_connections(psutil.Process())
    return any(c.raddr and (c.laddr.port, c.raddr.port) == (httpx.URL(url).port, mine) for c in found)


def read_on(client):
    got = b""
    with contextlib.suppress(OSError):
        while part := client.recv(2**16):
            got += part
    return got


def test_a_stream_that_nobody_reads_ends_with_the_requests_time(url, unread, log):
    started, (client, *_) = unread
    until(lambda: log.cut("/v1/chat/completions"))
    assert time.monotonic() - started > SECONDS - 0.5
    assert log.cut("/v1/chat/completions") == ["unread"]
    until(lambda: httpx.get(f"{url}/health").json()["running"] == 0)
    until(lambda: not connected(client, url))
    assert b"[DONE]" not in read_on(client)
    until(lambda: chat(url, max_tokens=2).status_code == 200)


def test_a_whole_answer_that_stays_unread_costs_its_connection(url, unread):
    """Its request has ended long before; closing the connection would wait for the client for ever."""
    started, (_, client, _) = unread
    until(lambda: not connected(client, url))
    assert time.monotonic() - started > SECONDS - 0.5
    assert len(read_on(client)) < LARGE / 16  # what the systems of both ends had kept


def test_pages_that_were_asked_for_together_and_never_read_end_too(url, unread, log):
    _, (*_, client) = unread
    until(lambda: not connected(client, url))
    until(lambda: "unread" in log.cut("/large"))
    assert "Traceback" not in log.text
    assert "without completing" not in log.text


def test_a_client_that_reads_in_time_is_left_alone(url):
    with closing(connect(url, request("/large"))) as client:
        time.sleep(SECONDS / 6)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)
        assert read_whole(client) == LARGE
        client.sendall(request("/large"))
        time.sleep(SECONDS / 6)
        assert read_whole(client) == LARGE


def test_a_client_that_never_ends_its_request_is_not_waited_for(tiny_model, monkeypatch):
    """Not of its first request, and not of one after an answer; a head that comes in parts is waited for."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 1.0)
    page, half = request("/livez"), b"GET /livez HTTP/1.1\r\nHo"
    with live(tiny_model, LONG) as url:
        for sent in (b"", page):
            started = time.monotonic()
            with closing(connect(url, sent)) as client:
                assert not sent or read_whole(client) > 0
                client.sendall(half)
                assert read_on(client) == b""
                assert 0.5 < time.monotonic() - started < 15  # `read_on` gives up after 20
        with closing(connect(url, page[:10])) as client:
            time.sleep(0.1)
            client.sendall(page[10:])
            assert read_whole(client) > 0


def read_whole(client):
    """The bytes of one body whose length its head tells."""
    got = b""
    while b"\r\n\r\n" not in got:
        got += client.recv(2**16)
    head, _, body = got.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    size = len(body)
    while size < length:
        part = client.recv(2**16)
        assert part, "the server broke it off"
        size += len(part)
    return size
