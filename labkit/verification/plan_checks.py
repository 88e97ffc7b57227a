"""Lesson 13.1: the machine, the route and the versions."""

import re

from labkit.environment import DEVICES
from labkit.verification.reading import PackReader, parse_fields, per_pack, require_filled
from labkit.verification.verdicts import Contradiction, NotYet

ENVIRONMENT = "environment_report.txt"
ROUTE_PLAN = "compute_route.md"
FREEZE = "requirements-freeze.txt"

_ENVIRONMENT_KEYS = ("Python", "Platform", "CPU", "RAM", "Disk free", "torch", "Device", "Device reason", "GPU", "VRAM")
_ROUTE_KEYS = ("Route", "Proves", "Cannot prove", "Fallback", "Stop rule", "Reason")
_RENTED_KEYS = ("Budget", "Stop time", "Evidence to copy back")
_PINNED = re.compile(r"^([A-Za-z0-9][\w.-]*)==(\S+)$")


def check_environment(pack: PackReader) -> str:
    """The machine is described, and the device it names is one that it says it has."""
    fields = pack.fields(ENVIRONMENT, _ENVIRONMENT_KEYS)
    device = fields["Device"]
    if device not in DEVICES[1:]:
        raise NotYet(f"{ENVIRONMENT} names the device {device!r}")
    backend = {"cuda": "CUDA", "mps": "MPS"}.get(device)
    if backend and fields.get(backend) != "available":
        raise Contradiction(f"{ENVIRONMENT} says Device {device} and {backend} {fields.get(backend, 'nothing')}")
    if device == "cuda" and fields["GPU"] == "none":
        raise Contradiction(f"{ENVIRONMENT} says Device cuda and GPU none")
    if fields.get("Package torch", fields["torch"]) != fields["torch"]:
        raise Contradiction(f"{ENVIRONMENT} says torch {fields['torch']} and package torch {fields['Package torch']}")
    if device == "cuda" and fields["torch"].endswith("+cpu"):
        raise Contradiction(f"{ENVIRONMENT} says Device cuda, and torch {fields['torch']} is a build without CUDA")
    return f"Python {fields['Python']}, torch {fields['torch']}, device {device}, GPU {fields['GPU']}"


def check_route_plan(pack: PackReader) -> str:
    keys = _ROUTE_KEYS + (_RENTED_KEYS if pack.route == "rented_gpu" else ())
    fields = pack.fields(ROUTE_PLAN, keys)
    if re.match(r"(?:none|nothing|-)\W*$", fields["Cannot prove"], re.I):
        raise NotYet(
            f"{ROUTE_PLAN} says that nothing cannot be proved on {fields['Route']}; every route has its limits"
        )
    return f"route {fields['Route']}; {len(keys)} fields filled"


def check_notes(pack: PackReader, name: str) -> str:
    """gpu_plan.md or colab_notes.md: a form in which every field has been filled."""
    fields = parse_fields(pack.text(name), name)
    if len(fields) < 3:
        raise NotYet(f"{name} has {len(fields)} `- Key: value` lines, fewer than three")
    require_filled(fields, name)
    return f"{len(fields)} fields filled"


def check_freeze(pack: PackReader) -> str:
    versions = freeze_versions(pack)
    if "torch" not in versions:
        raise NotYet(f"{FREEZE} does not name torch")
    return f"{len(versions)} exact versions"


@per_pack
def freeze_versions(pack: PackReader) -> dict[str, str]:
    """Name (lower case, hyphens) to version. Raises NotYet for a line that is not `name==version`, Contradiction for a
    name with two versions."""
    lines = [line.strip() for line in pack.text(FREEZE).splitlines() if line.strip()]
    matches = [_PINNED.match(line) for line in lines]
    if not all(matches):
        raise NotYet(f"{FREEZE} has a line that is not name==version: {lines[matches.index(None)][:60]!r}")
    found: dict[str, str] = {}
    for match in matches:
        name, version = normalised(match[1]), match[2]
        if found.setdefault(name, version) != version:
            raise Contradiction(f"{FREEZE} pins {name} twice: {found[name]} and {version}")
    return found


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
