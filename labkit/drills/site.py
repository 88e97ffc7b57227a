"""Where a drill happens: one port of this machine, the server on it, and clients that speak plain HTTP to it."""

import contextlib
import json
import os
import secrets
import shlex
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path

from labkit.drills.record import Answer
from labkit.endpoint import KEY_VARIABLE
from labkit.errors import LabError
from labkit.layout import ROOT, without_paths
from labkit.serving.contract import Limits
from labkit.serving.ports import free_port
from labkit.serving.runtimes import SERVER_MODULE, ServerHandle, start_server

HOST = "127.0.0.1"
CHAT = "/v1/chat/completions"
# One answer at a time and no queue: a handful of clients is then a real overload.
LIMITS = Limits(max_output_tokens=512, request_seconds=60, concurrency=1, queue=0)
LONG_ANSWER = {"max_tokens": None, "temperature": 2.0}  # up to the limit, and so hot that a model seldom ends early
START_SECONDS = 120  # what a start that must fail may take on a busy machine


@dataclass(frozen=True)
class FailedStart:
    """A server process that was started and ended by itself, why it had to, and what lets the next start succeed."""

    command: str
    cause: str
    remedy: str
    exit_code: int
    message: str
    seconds: float
    name: str = ""
    time: str = ""


class Site:
    """One port and at most one server on it, which the drills share where they can. Leaving a `with` block ends it.

    The server has a key that is made for the drills and is written nowhere.
    """

    def __init__(self, port: int, model: str = "mini-instruct", device: str = "auto"):
        self.port, self.model, self.device = port, model, device
        self.key = secrets.token_urlsafe(24)
        self.start_seconds = 0.0  # of the last start
        self._server: ServerHandle | None = None
        self._limits = LIMITS
        self._running = contextlib.ExitStack()

    def __enter__(self) -> "Site":
        return self

    def __exit__(self, *_) -> None:
        self._running.close()

    @property
    def model_name(self) -> str:
        return Path(self.model).name

    def server(self, limits: Limits | None = None) -> ServerHandle:
        """The running server; one is started where none runs, and another where `limits` are named and are not its own.

        Raises LabError with the server's own reason.
        """
        if limits and limits != self._limits:
            self._running.close()
        if self._server is None or self._server.process.poll() is not None:
            started, self._limits = time.perf_counter(), limits or LIMITS
            handle = start_server(self.model, HOST, self.port, self.device, self._limits, api_key=self.key)
            self._server, self.start_seconds = self._running.enter_context(handle), time.perf_counter() - started
        return self._server

    def failed_start(
        self, cause: str, remedy: str, program: tuple[str, ...] = (SERVER_MODULE,), **options: str
    ) -> FailedStart:
        """Start a server process that must fail, without a key, on a port of its own; `options` replace its options.

        Raises LabError when it does not fail.
        """
        options = {"model": self.model, "host": HOST, "port": str(free_port()), "device": self.device} | options
        words = ["-m", *program, *(f"--{name}={value}" for name, value in options.items())]
        started, done = time.perf_counter(), None
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(
                [sys.executable, *words],
                cwd=ROOT,
                env={**os.environ, KEY_VARIABLE: ""},
                capture_output=True,
                text=True,
                timeout=START_SECONDS,
                check=False,
            )
        if done is None or done.returncode == 0:
            raise not_provoked(f"the start did not fail within {START_SECONDS:g} s")
        command, seconds = without_paths(shlex.join(["python", *words])), round(time.perf_counter() - started, 2)
        return FailedStart(command, cause, remedy, done.returncode, _error(done.stderr), seconds)

    def connect(self, receive_bytes: int | None = None) -> HTTPConnection:
        """A connection of its own; `receive_bytes` makes the client's buffer so small that unread answers pile up."""
        connection = HTTPConnection(HOST, self.port, timeout=LIMITS.request_seconds)
        if receive_bytes:
            connection.sock = socket.socket()
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            connection.sock.settimeout(LIMITS.request_seconds)
            connection.sock.connect((HOST, self.port))
        return connection

    def send(self, connection: HTTPConnection, key: str | None = None, **body) -> None:
        """Send one chat request, with the site's key where none is given; "" sends none."""
        key = self.key if key is None else key
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        asked = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 8, **body}
        connection.request("POST", CHAT, json.dumps(asked), headers)

    def open_stream(self, connection: HTTPConnection, **body) -> HTTPResponse:
        """The beginning of a long streamed answer. Raises LabError when the server does not give one."""
        try:
            self.send(connection, stream=True, **LONG_ANSWER, **body)
            stream = connection.getresponse()
        except (OSError, HTTPException) as error:
            raise not_provoked(f"no stream began: {told(error)}") from None
        if stream.status != 200:
            raise not_provoked(f"no stream began: {stream.status}: {_refusal(stream.read())}")
        return stream

    def ask(self, key: str | None = None, **body) -> Answer:
        """One chat request and the whole answer to it."""
        started = time.perf_counter()
        try:
            with contextlib.closing(self.connect()) as connection:
                self.send(connection, key, **body)
                response = connection.getresponse()
                said = response.read()
        except (OSError, HTTPException) as error:
            return Answer(0, _since(started), told(error))
        latency = _since(started)
        error = "none" if response.status == 200 else _refusal(said)
        return Answer(response.status, latency, error, response.getheader("Retry-After", "none"))


def not_provoked(why: str) -> LabError:
    return LabError(f"the failure could not be provoked: {why}", "run the drill once more")


def told(error: Exception) -> str:
    """An exception as a client meets it."""
    return without_paths(repr(error))


def _since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 1)


def _refusal(body: bytes) -> str:
    """The message of an error in OpenAI's shape, else the beginning of the body."""
    try:
        return json.loads(body)["error"]["message"]
    except (ValueError, LookupError, TypeError):
        return body[:200].decode("utf-8", errors="replace") or "an empty body"


def _error(printed: str) -> str:
    """The error that a process printed last, without this machine's folders; else its last line."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()] or ["nothing was printed"]
    errors = [line for line in lines if line.startswith("error:")] or lines[-1:]
    return without_paths(errors[-1].removeprefix("error:").strip())
