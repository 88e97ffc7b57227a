"""Names of other machines, as they may be handed to ssh."""

import re
import shutil
from dataclasses import dataclass

from labkit.errors import LabError

_HOST = re.compile(r"(?:[A-Za-z0-9_][\w.-]*@)?(?:[A-Za-z0-9][\w.-]*|\[[0-9A-Fa-f:.]+\])")


@dataclass(frozen=True)
class Host:
    """[user@]host as ssh takes it, with a port and a key file where ~/.ssh/config does not name them."""

    name: str
    port: int | None = None
    identity: str = ""

    def __post_init__(self):
        if not _HOST.fullmatch(self.name):
            raise LabError(f"{self.name!r} is not a machine", "name it as user@host, or as a Host of ~/.ssh/config")
        if self.port is not None and not 1 <= self.port <= 65535:
            raise LabError(f"{self.port} is not a port", "give --ssh-port the number that the provider shows")

    def options(self, port_flag: str = "-p") -> list[str]:
        """The words for ssh, or with "-P" for scp."""
        port = [port_flag, str(self.port)] if self.port else []
        return port + (["-i", self.identity] if self.identity else [])


def program(*names: str) -> str:
    """The first of these programs that is installed. Raises LabError without one."""
    for name in names:
        if found := shutil.which(name):
            return found
    raise LabError(f"{' and '.join(names)} not found on this machine", f"install {names[0]}")
