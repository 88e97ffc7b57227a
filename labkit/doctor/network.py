"""Checks of the network: the model hub, its cache, and the port to serve on."""

import contextlib
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

from labkit.doctor.findings import Finding, Question, not_here, ok, problem
from labkit.errors import LabError
from labkit.serving.ports import port_open
from labkit.serving.running import running_server

HUB_SECONDS = 3.0  # what the hub gets to answer in; no answer is an answer too
OFFLINE = "download on another machine, copy the folder and give its path as --model; mini-instruct needs no hub"


def hub(question: Question) -> Finding:
    """Whether the model hub answers. With HF_HUB_OFFLINE=1 nobody asks it, and that is no problem."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return not_here("hub", "HF_HUB_OFFLINE is set: nothing is downloaded, and what is in the cache can be used")
    started = time.perf_counter()
    try:
        with urllib.request.urlopen(f"{constants.ENDPOINT}/api/models?limit=1", timeout=HUB_SECONDS) as answer:
            status = answer.status
    except urllib.error.HTTPError as error:
        return problem("hub", f"{constants.ENDPOINT} answers {error.code} {error.reason}", OFFLINE)
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        step = f"{OFFLINE}; where no network is meant to be, set HF_HUB_OFFLINE=1, so that nothing waits for one"
        return problem("hub", f"{constants.ENDPOINT} cannot be reached: {why}", step)
    return ok("hub", f"{constants.ENDPOINT} answers {status} in {(time.perf_counter() - started) * 1000:.0f} ms")


def hub_cache(question: Question) -> Finding:
    """Downloads that were broken off: the hub's client continues them, unless the file is damaged."""
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE)
    if not cache.is_dir():
        return ok("hub_cache", "there is no cache yet: nothing was downloaded by this user")
    broken = sorted(cache.glob("*/blobs/*.incomplete"))
    models = sum(1 for _ in cache.glob("models--*"))
    if broken:
        names = ", ".join(
            sorted({path.parent.parent.name.removeprefix("models--").replace("--", "/") for path in broken})
        )
        step = f"download {names} once more, it is continued; if that fails, delete its *.incomplete files first"
        return problem("hub_cache", f"{len(broken)} unfinished files among {models} models", step)
    return ok("hub_cache", f"{models} models in the cache, no unfinished file")


def port(question: Question) -> Finding:
    """Who listens on the port."""
    number = question.port
    if not port_open("127.0.0.1", number):
        return ok("port", f"port {number} is free")
    ours = None
    with contextlib.suppress(LabError):
        ours = running_server(number)
    if ours is not None and ours.process() is not None:
        seen = f"port {number} belongs to a labkit server that serves {ours.model} (process {ours.pid})"
        return problem("port", seen, f"run `labkit stop --port {number}`, or serve with another --port")
    seen = f"port {number} belongs to {_listener(number)}"
    return problem("port", seen, "serve with another --port, or end that program yourself")


def _listener(number: int) -> str:
    """The process that listens on the port, where this user may know it."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == number and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
    return "a program of another user"
