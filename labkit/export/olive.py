"""Olive's two routes to an ONNX export, in an environment of their own.

Olive 0.13 calls the model builder of onnxruntime-genai 0.14.1 and fails with later ones, while its output runs on them.
So it gets a virtual environment under the workbook's state folder, made when it is asked for first, and is called as a
program. That environment holds Olive and what only Olive needs; torch, transformers and the rest it reads from here,
which makes it some hundred megabytes and not some gigabytes. Commands and configuration are those of Olive's own
command line (microsoft.github.io/Olive, seen 2026-11-27).
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from labkit.environment import installed_version
from labkit.errors import LabError
from labkit.export.onnx import GENAI_CONFIG, GRAPH
from labkit.layout import STATE, without_paths

# What only Olive needs, tried with the versions of pyproject.toml. Olive imports requests and does not ask for it.
PACKAGES = ("olive-ai==0.13.0", "onnxruntime-genai==0.14.1", "onnxscript==0.7.2", "requests==2.34.2")
LENT = "workbook.pth"  # adds the folders of this environment's packages behind its own
ROUTES = ("olive", "olive-config")  # one command; a configuration in JSON
PRECISIONS = {"float32": "fp32", "float16": "fp16", "int4": "int4"}
# Told only to disable telemetry, Olive 0.13 sends one record first, with an id of this device; under CI it sends none.
OFFLINE = {"CI": "true", "OLIVE_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
INSTALLED = "installed.txt"
OWN_RECORD = "model_config.json"  # Olive's, with the folders of this machine in it


def environment_folder() -> Path:
    """Where the environment is or will be; other packages, here or there, are another environment."""
    lent = [f"{name}=={installed_version(name)}" for name in ("torch", "transformers", "onnxruntime")]
    wanted = "\n".join([*PACKAGES, *lent, sys.executable, *map(str, sys.version_info[:2])])
    return STATE / "olive" / hashlib.sha256(wanted.encode()).hexdigest()[:12]


def olive_ready() -> bool:
    return (environment_folder() / INSTALLED).is_file()


def make_environment() -> Path:
    """The folder of the environment, made where it is not there, in a minute or two.

    It is complete or not there. Raises LabError when pip cannot install it, for instance without a network.
    """
    folder = environment_folder()
    if olive_ready():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _call([sys.executable, "-m", "venv", "--without-pip", str(folder)], "no environment could be made for Olive")
        _lend(folder)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(_program(folder, "python"))]
        failed = f"{' and '.join(PACKAGES[:2])} could not be installed into an environment for Olive"
        _call([*pip, "install", "--quiet", *PACKAGES], failed)
        (folder / INSTALLED).write_text(_call([*pip, "freeze"], failed), encoding="utf-8")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _lend(folder: Path) -> None:
    """Let the Python in `folder` read this environment's packages after its own (a path file: see Python's `site`)."""
    own = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    lent = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (Path(own) / LENT).write_text("\n".join(lent) + "\n", encoding="utf-8")


def installed_packages() -> dict[str, str]:
    """Versions in the environment of what decides its output; empty where it was not made."""
    if not olive_ready():
        return {}
    lines = (environment_folder() / INSTALLED).read_text(encoding="utf-8").splitlines()
    held = dict(line.split("==", 1) for line in lines if "==" in line)
    wanted = ("olive-ai", "onnxruntime-genai", "onnxruntime", "torch", "transformers")
    return {name: held[name] for name in wanted if name in held}


def require_precision(precision: str) -> None:
    """Raises LabError for a precision that Olive's builder does not make here."""
    if precision not in PRECISIONS:
        what = f"Olive's model builder is not asked for {precision} here"
        raise LabError(what, f"choose {', '.join(sorted(PRECISIONS.values()))}, or --tool builder")


def olive_arguments(model: Path, out: Path, precision: str) -> list[str]:
    """Olive's route in one command, after the program's name."""
    return [
        *("capture-onnx-graph", "--model_name_or_path", str(model), "--use_model_builder"),
        *("--precision", PRECISIONS[precision], "--output_path", str(out)),
    ]


def olive_config(model: Path, out: Path, cache: Path, precision: str) -> dict:
    """Olive's route by a configuration: the same conversion as one pass, for `olive run --config FILE`."""
    system = {
        "type": "LocalSystem",
        "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}],
    }
    return {
        "input_model": {"type": "HfModel", "model_path": str(model)},
        "systems": {"local_system": system},
        "passes": {"builder": {"type": "ModelBuilder", "precision": PRECISIONS[precision]}},
        "host": "local_system",
        "target": "local_system",
        "cache_dir": str(cache),
        "output_dir": str(out),
    }


def export_with_olive(folder: Path, out: Path, precision: str, route: str) -> None:
    """Write the checkpoint in `folder` into the folder `out`, empty or new, by one of ROUTES.

    Raises LabError as `require_precision` does, and when Olive fails, with its reason.
    """
    require_precision(precision)
    program = _program(make_environment(), "olive")
    with tempfile.TemporaryDirectory(prefix="labkit-olive-") as scratch:
        made = Path(scratch) / "made"
        if route == "olive":
            arguments = olive_arguments(folder, made, precision)
        else:
            config = Path(scratch) / "config.json"
            config.write_text(json.dumps(olive_config(folder, made, Path(scratch) / "cache", precision), indent=2))
            arguments = ["run", "--config", str(config)]
        _call([str(program), *arguments], f"Olive could not convert {folder.name}", Path(scratch))
        own = shutil.ignore_patterns(OWN_RECORD)
        shutil.copytree(_export_in(made), out, ignore=own, dirs_exist_ok=True)


def _export_in(made: Path) -> Path:
    """The folder below `made` in which the export lies: Olive's routes lay it at different depths."""
    found = sorted(path.parent for path in made.rglob(GENAI_CONFIG) if (path.parent / GRAPH).is_file())
    if not found:
        raise LabError("Olive ended well and left no export", "run the same command with --tool builder")
    return found[0]


def _program(folder: Path, name: str) -> Path:
    return folder / ("Scripts" if os.name == "nt" else "bin") / (name + (".exe" if os.name == "nt" else ""))


def _call(command: list[str], failed: str, folder: Path | None = None) -> str:
    """Run it to its end and return what it printed. Raises LabError with `failed` and the last line of what it said."""
    environment = {**os.environ, **OFFLINE}
    environment.pop("PYTHONPATH", None)  # this workbook's packages are not Olive's
    done = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).strip().splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines or [f"code {done.returncode}"]
        next_step = "give pip a network or an index that has them, or use --tool builder, which needs no Olive"
        raise LabError(without_paths(f"{failed}: {errors[-1].strip()}"), next_step)
    return done.stdout
