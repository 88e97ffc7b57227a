"""Clients that do not read: after the time of the contract they hold no slot, no request and no connection."""

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

from labkit.serving import connections
from labkit.serving.app import create_app

SECONDS = 1.5
LARGE = 4 * 2**20  # bytes: more than any system keeps for a client


@pytest.fixture(scope="module")
def url(tiny_model):
    """A server with a page that is too large for every buffer."""
    with pytest.MonkeyPatch.context() as patch:

        def with_large_page(*words) -> FastAPI:
            app = create_app(*words)
            app.add_api_route("/large", lambda: Response(b"x" * LARGE))
            return app

        patch.setattr("tiny_server.create_app", with_large_page)
        patch.setattr(connections, "UNREAD_BYTES", 4096)  # so that the tiny model fills it soon
        with live(tiny_model, replace(LONG, request_seconds=SECONDS)) as base_url:
            yield base_url


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
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def held(client, url):
    """Whether the server, which lives in this process, has the other end of the client's connection."""
    mine = client.getsockname()[1]
    found = psutil.Process().net_connections("tcp")
    return any(c.raddr and (c.laddr.port, c.raddr.port) == (httpx.URL(url).port, mine) for c in found)


def read_on(client):
    got = b""
    try:
        while part := client.recv(2**16):
            got += part
    except OSError:
        pass
    return got


def test_a_stream_that_nobody_reads_ends_with_the_requests_time(url, caplog):
    body = {"messages": HELLO, "stream": True, "max_tokens": 3000, "logprobs": True, "top_logprobs": 20}
    started = time.monotonic()
    with closing(connect(url, request("/v1/chat/completions", body))) as client, caplog.at_level(logging.INFO):
        until(lambda: httpx.get(f"{url}/health").json()["running"] == 1)
        assert held(client, url)
        until(lambda: httpx.get(f"{url}/health").json()["running"] == 0)
        until(lambda: not held(client, url))
        assert time.monotonic() - started > SECONDS - 0.5
        assert b"[DONE]" not in read_on(client)
        until(lambda: answered(caplog))
    (record,) = answered(caplog)
    assert (record["status"], record["cut"]) == (200, "unread")
    assert record["seconds"] < SECONDS + 2
    assert chat(url, max_tokens=2).status_code == 200


def answered(caplog):
    """The log's fields of each request for an answer."""
    fields = [entry.fields for entry in caplog.records if hasattr(entry, "fields")]
    return [found for found in fields if found["path"].endswith("completions")]


def test_pages_that_were_asked_for_one_after_the_other_and_never_read_end_too(url, caplog):
    with closing(connect(url, request("/large") * 3)) as client, caplog.at_level(logging.INFO):
        until(lambda: not held(client, url))
        until(lambda: any(getattr(r, "fields", {}).get("cut") == "unread" for r in caplog.records))
    assert "Traceback" not in caplog.text
    assert "without completing" not in caplog.text


def test_a_whole_answer_that_stays_unread_costs_its_connection_and_no_more_than_the_time(url):
    with closing(connect(url, request("/large"))) as client:
        started = time.monotonic()
        until(lambda: not held(client, url))
        assert SECONDS - 0.5 < time.monotonic() - started < SECONDS + 2.5  # closing it, after 5 s, would wait for ever
        assert len(read_on(client)) < LARGE / 16  # what the systems of both ends had kept


def test_a_client_that_reads_in_time_is_left_alone(url):
    with closing(connect(url, request("/large"))) as client:
        time.sleep(SECONDS / 4)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)
        assert read_whole(client) == LARGE
        client.sendall(request("/large"))
        time.sleep(SECONDS / 4)
        assert read_whole(client) == LARGE


def read_whole(client):
    """The bytes of one body whose length its head tells."""
    got = b""
    while b"\r\n\r\n" not in got:
        got += client.recv(2**16)
    head, _, body = got.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    size = len(body)
    while size < length:
        size += len(client.recv(2**16))
    return size
