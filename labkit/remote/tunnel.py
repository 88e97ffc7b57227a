"""An ssh tunnel to a server that listens on its own machine's loopback only: no public port, and ssh's own keys."""

import contextlib
import subprocess
import time
from collections.abc import Iterator

from labkit.errors import LabError
from labkit.remote.host import Host, program
from labkit.serving.ports import claim_port, port_open

OPEN_SECONDS = 30.0  # for the connection, and for somebody to type a passphrase
# The first word that fails ends ssh, and so does a line that has been dead for 45 seconds.
OPTIONS = ("ExitOnForwardFailure=yes", "ServerAliveInterval=15", "ServerAliveCountMax=3")


def tunnel_command(host: Host, port: int, remote_port: int) -> list[str]:
    """ssh that forwards `port` of this machine's loopback to `remote_port` of the other's. Raises LabError."""
    if not 1 <= remote_port <= 65535:
        raise LabError(f"{remote_port} is not a port", "give --remote-port the one that the server there listens on")
    settings = [word for option in OPTIONS for word in ("-o", option)]
    forward = ["-L", f"127.0.0.1:{port}:127.0.0.1:{remote_port}"]
    return ["ssh", "-N", *settings, *host.options(), *forward, host.name]


@contextlib.contextmanager
def open_tunnel(command: list[str], port: int, seconds: float = OPEN_SECONDS) -> Iterator[subprocess.Popen]:
    """Run `command` until the body ends; the body begins when `port` answers.

    Raises LabError when the port is taken, when ssh ends (its own words are on the screen), and after `seconds`.
    """
    claim_port("127.0.0.1", port).close()
    ssh = subprocess.Popen([program("ssh"), *command[1:]])
    try:
        deadline = time.monotonic() + seconds
        while not port_open("127.0.0.1", port):
            if ssh.poll() is not None:
                raise _ended(ssh)
            if time.monotonic() > deadline:
                raise LabError(
                    f"the tunnel was not open within {seconds:g} s", "check the host's name and its firewall"
                )
            time.sleep(0.1)
        yield ssh
    finally:
        ssh.terminate()
        ssh.wait()


def wait_for_end(ssh: subprocess.Popen, told: str) -> None:
    """Say `told`, and return at Ctrl+C. Raises LabError when the tunnel breaks."""
    with contextlib.suppress(KeyboardInterrupt):
        print(told, flush=True)
        ssh.wait()
        raise _ended(ssh)


def _ended(ssh: subprocess.Popen) -> LabError:
    return LabError(f"ssh ended with code {ssh.returncode}", "read what it said above, then run the command again")
