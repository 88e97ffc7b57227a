"""The ports of this machine: claim one for a server, find a free one, see whether one answers."""

import errno
import socket
import sys

import psutil

from labkit.errors import LabError
from labkit.serving.running import running_server


def check_port(port: int) -> None:
    """Raises LabError for a number that is no TCP port."""
    if not 1 <= port <= 65535:
        raise LabError(f"{port} is not a port", "choose a --port from 1024 to 65535")


def claim_port(host: str, port: int) -> socket.socket:
    """A socket that listens on `host`:`port`. Raises LabError when it is taken, forbidden or not of this machine."""
    check_port(port)
    listener = None
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # asyncio sends small parts at once only where a socket names its protocol; else each answer waits 40 ms.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        # On Windows SO_REUSEADDR would let two servers share a port.
        exclusive = getattr(socket, "SO_EXCLUSIVEADDRUSE", None)
        listener.setsockopt(socket.SOL_SOCKET, exclusive or socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
        return listener
    except OSError as error:
        if listener is not None:
            listener.close()
        raise _port_error(host, port, error) from None


def _port_error(host: str, port: int, error: OSError) -> LabError:
    if error.errno == errno.EADDRINUSE or (sys.platform == "win32" and port_open(host, port)):
        ours = running_server(port)
        if ours is not None and ours.process() is not None:
            what = f"port {port} is already in use by a labkit server that serves {ours.model}"
            return LabError(what, f"choose another --port or stop it with `labkit stop --port {port}`")
        what = f"port {port} is already in use by another program"
        return LabError(what, f"choose another --port, or end that program; `labkit stop --port {port}` ends ours only")
    if isinstance(error, PermissionError):
        return LabError(f"this user may not open port {port}", "choose a --port from 1024 to 65535")
    return LabError(f"cannot listen on {host} port {port}: {error.strerror or error}", "use --host 127.0.0.1")


def free_port() -> int:
    """A loopback port that nobody listens on now, and that the system gives nobody who asks for any port, for a minute.

    A connection that ended there a moment ago keeps it (TIME_WAIT); a server that names the port and sets SO_REUSEADDR
    gets it. On Windows nothing is reserved, because claim_port wants its port for itself alone.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        if sys.platform != "win32":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.listen()
            with socket.create_connection(probe.getsockname()) as caller:
                probe.accept()[0].close()  # the end that closes first waits
                caller.recv(1)
        return probe.getsockname()[1]


def tcp_connections(process: psutil.Process) -> list:
    """The TCP sockets of `process`. psutil called the method connections before its version 6; free Colab has 5.9."""
    known = "net_connections" if hasattr(process, "net_connections") else "connections"
    return getattr(process, known)("tcp")


def port_open(host: str, port: int) -> bool:
    """Whether something accepts connections on `port` of this machine."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        socket.create_connection((reachable, port), timeout=1).close()
        return True
    except OSError:
        return False
