"""What uvicorn leaves open: the end of a connection whose client does not read, or does not say what it wants, and what
a server's end did to answers.

uvicorn waits for a full buffer to empty, and so does closing it: a client that reads nothing would keep its connection
and its request for as long as TCP lets it. It waits as long for a request's head.
"""

import asyncio
import signal
import socket

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from labkit.serving.gate import CONNECTION, Traffic

HEAD_SECONDS = 30.0  # for a request's head to arrive, whole
UNREAD_BYTES = 65_536  # which the system holds for a client, and the server again; Linux alone would go to megabytes


class Connection(AutoHTTPProtocol):
    """One client's connection, which a request finds in its scope's state under CONNECTION and can give an end."""

    def __init__(self, config, server_state, app_state, _loop=None):
        super().__init__(config, server_state, {**app_state, CONNECTION: self}, _loop)
        self._end: asyncio.TimerHandle | None = None
        self._head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD_BYTES)
        transport.set_write_buffer_limits(high=UNREAD_BYTES)
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def _watch_head(self) -> None:
        """End the connection in HEAD_SECONDS from the first byte of a head, or of nothing, that is not all there."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget_head()
        elif self._head is None:
            self._head = asyncio.get_running_loop().call_later(HEAD_SECONDS, self.transport.abort)

    def _forget_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def connection_lost(self, error: Exception | None) -> None:
        self.keep()
        self._forget_head()
        super().connection_lost(error)

    def keep(self) -> None:
        """Take back `end_at`: the client is there, and asks for more."""
        if self._end is not None:
            self._end.cancel()
            self._end = None

    def end_at(self, deadline: float) -> None:
        """Break off at `deadline` (the event loop's time) if the client has not taken everything until then."""
        self.keep()
        if self._unread():
            self._end = asyncio.get_running_loop().call_at(deadline, self._break_off_unread)

    def _break_off_unread(self) -> None:
        if self._unread():
            self.transport.abort()

    def _unread(self) -> int:
        return self.transport.get_write_buffer_size()


class Server(uvicorn.Server):
    """uvicorn that notes by which signal it ended, and how many answers it then finished and cut off.

    Until `traffic` is set nothing can have been answered.
    """

    traffic: Traffic | None = None
    ended_by = ""  # the signal's name
    drained = 0

    def __init__(self, app: ASGIApp, drain_seconds: float | None = None, **config):
        quiet = {"server_header": False, "access_log": False}
        super().__init__(
            uvicorn.Config(app, http=Connection, timeout_graceful_shutdown=drain_seconds, **quiet, **config)
        )

    def handle_exit(self, number: int, frame) -> None:
        self.ended_by = self.ended_by or signal.Signals(number).name
        super().handle_exit(number, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        before = self.traffic.answered if self.traffic else 0
        await super().shutdown(sockets)
        self.drained = self.traffic.answered - before if self.traffic else 0
