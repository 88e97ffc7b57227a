"""Failures of the start: port, model path, memory, key. One good start after them is what recovers them all."""

import json
import shutil
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from labkit.drills.record import Drill, NotPossibleHere
from labkit.drills.site import HOST, FailedStart, Site
from labkit.endpoint import KEY_VARIABLE
from labkit.layout import MODELS
from labkit.serving.ports import claim_port

MISSING_MODEL = "data/models/no-such-model"
OPEN_HOST = "0.0.0.0"
# The one is what a server may map beside its libraries, enough for the threads of many cores; the other is too much.
GIB, MODEL_GIB = 16, 64


def port_taken(site: Site) -> FailedStart:
    """Another program listens on the server's port."""
    with closing(claim_port(HOST, site.port)):
        return site.failed_start(
            f"another program listened on port {site.port}",
            f"ended that program and started the server on port {site.port}",
            port=str(site.port),
        )


def model_path_wrong(site: Site) -> FailedStart:
    """The server is started with a model folder that does not exist."""
    return site.failed_start(
        "there is no such folder", f"started the server with --model {site.model_name}", model=MISSING_MODEL
    )


def out_of_memory(site: Site) -> FailedStart:
    """The model is larger than the memory that the server's process may use."""
    if sys.platform != "linux":
        raise NotPossibleHere(f"only Linux enforces the limit RLIMIT_AS on a process; this is {sys.platform}")
    with tempfile.TemporaryDirectory() as folder:
        model = _too_large_model(Path(folder) / "too-large")
        return site.failed_start(
            f"the model has {MODEL_GIB} GiB, and the process may map {GIB} GiB beside its libraries",
            f"started the server without that limit and with a model that fits, {site.model_name}",
            program=("labkit.drills.limited", str(GIB)),
            model=str(model),
            device="cpu",
        )


def _too_large_model(folder: Path) -> Path:
    """A checkpoint of MODEL_GIB GiB that takes no room on the disk: its weights are a hole in a sparse file."""
    shutil.copytree(MODELS / "mini-instruct", folder, ignore=shutil.ignore_patterns("*.safetensors", "*.csv"))
    size = MODEL_GIB * 2**30
    width = json.loads((folder / "config.json").read_text(encoding="utf-8"))["hidden_size"]
    tensor = {"dtype": "BF16", "shape": [size // 2 // width, width], "data_offsets": [0, size]}
    header = json.dumps({"model.embed_tokens.weight": tensor, "__metadata__": {"format": "pt"}}).encode()
    header += b" " * (-len(header) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    return folder


def key_missing_at_start(site: Site) -> FailedStart:
    """A server that others could reach is started without an API key."""
    return site.failed_start(
        f"{KEY_VARIABLE} was not set",
        f"started the server with a key in {KEY_VARIABLE}, on {HOST}: a drill opens no port to others",
        host=OPEN_HOST,
    )


def recover(site: Site, failed: FailedStart) -> Drill:
    """The record of a start that failed, after the good start that follows it and must answer."""
    site.server()
    answered = site.ask()
    return Drill(
        name=failed.name,
        provoked=f"`{failed.command}`; {failed.cause}",
        observed={"exit_code": failed.exit_code, "message": failed.message, "seconds": failed.seconds},
        detected=f"the start ended with exit code {failed.exit_code}: {failed.message}",
        recovered=failed.remedy,
        recovered_ok=answered.status == 200,
        answered=answered,
        seconds=round(failed.seconds + site.start_seconds + answered.latency_ms / 1000, 4),
        time=failed.time,
    )
