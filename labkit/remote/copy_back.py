"""A pack from another machine: copied, held against its manifest file by file, and only then put in its place."""

import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import LabError
from labkit.evidence import MANIFEST, read_manifest, sha256_of
from labkit.remote.host import Host, program

_REMOTE = re.compile(r"((?:[^:/@\s]+@)?(?:\[[^\]]+\]|[^:/\s]+)):(.+)")
_SHOWN = 5  # wrong files that an error names


@dataclass(frozen=True)
class Copied:
    """What has arrived: files and bytes that the manifest vouches for, and files that it does not name."""

    folder: Path
    route: str
    files: int
    bytes: int
    unrecorded: tuple[str, ...]


def copy_back(source: str, target: Path, replace: bool = False, port: int | None = None, identity: str = "") -> Copied:
    """Copy the pack at `source` ([user@]host:folder, or a folder) to `target`.

    It arrives in a folder beside `target`, which is kept after a failure: the next try goes on from there. What stood
    at `target` is replaced only when `replace` is set, and only by a pack that is whole.
    Raises LabError when the copy fails, when the pack has no manifest, and when a file is not what its manifest says.
    """
    target = Path(target).absolute()
    if target.exists() and not replace:
        raise LabError(
            f"{target.name} is there already", "give another --to, or --replace it", where=target.parent.name
        )
    arriving = target.with_name(f".{target.name}.arriving")
    arriving.mkdir(parents=True, exist_ok=True)
    _fetch(source, arriving, port, identity)
    copied = _checked(arriving, target)
    if target.exists():
        shutil.rmtree(target)
    arriving.rename(target)
    return copied


def _fetch(source: str, folder: Path, port: int | None, identity: str) -> None:
    """rsync, which goes on with what is there, or scp where it is missing on either side. Links are not followed."""
    remote = _REMOTE.fullmatch(source)
    host = Host(remote[1], port, identity) if remote else None
    place = remote[2].rstrip("/") if remote else str(Path(source).expanduser().absolute())
    if not host and not Path(place).is_dir():
        raise LabError(f"there is no folder {Path(place).name}", "name the pack as user@host:evidence/rented_gpu")
    shell = ["-e", shlex.join(["ssh", *host.options()])] if host else []
    begin = f"{host.name}:" if host else ""
    if shutil.which("rsync"):
        argv = ["rsync", "-rtc", "--delete", "--secluded-args", *shell, "--", f"{begin}{place}/", f"{folder}/"]
        if (code := subprocess.run(argv, check=False).returncode) == 0:
            return
        if not host or code not in (12, 127):  # 12: the other side did not speak rsync
            raise _failed("rsync", code)
    options = host.options("-P") if host else []
    argv = [program("scp", "rsync"), "-rpq", *options, "--", f"{begin}{place}/.", str(folder)]
    if code := subprocess.run(argv, check=False).returncode:
        raise _failed("scp", code)


def _failed(name: str, code: int) -> LabError:
    next_step = "read what it said above, and run the same command again: it goes on with what has arrived"
    return LabError(f"{name} ended with code {code}", next_step)


def _checked(folder: Path, target: Path) -> Copied:
    """That every file of the manifest is there with the size and the sha256 that it had when it was recorded."""
    manifest = read_manifest(folder)
    entries = manifest["files"]
    wrong = [f"{name} ({why})" for name, entry in entries.items() if (why := _wrong(folder, name, entry))]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        what = f"{len(wrong)} of {len(entries)} files are not what the manifest says: {', '.join(wrong[:_SHOWN])}{more}"
        raise LabError(what, "copy again; if it stays, look at the pack there with `labkit verify`", where=target.name)
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    size = sum(entry["bytes"] for entry in entries.values())
    return Copied(target, manifest["route"], len(entries), size, tuple(sorted(there - entries.keys() - {MANIFEST})))


def _wrong(folder: Path, name: str, entry: dict) -> str:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        return "its name leads out of the pack"
    if not path.is_file():
        return "missing"
    if path.stat().st_size != entry["bytes"]:
        return f"{path.stat().st_size} bytes, not {entry['bytes']}"
    return "" if sha256_of(path) == entry["sha256"] else "another content"
