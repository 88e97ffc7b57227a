"""Checks of what is installed: the workbook's pins, Colab's session, vLLM, and the widgets."""

import importlib.metadata
import json
import platform
import re
import sys
from pathlib import Path

from labkit.doctor.findings import Finding, Question, not_here, ok, problem
from labkit.environment import PACKAGES, in_colab, installed_version, version_warnings
from labkit.layout import ROOT

# https://docs.vllm.ai/en/v0.14.0/getting_started/installation/gpu/, seen 2026-11-27: the wheels for NVIDIA cards.
VLLM_PYTHON = ((3, 10), (3, 13))
VLLM_CAPABILITY = (7, 0)
MANAGER = "@jupyter-widgets/jupyterlab-manager"


def versions(question: Question) -> Finding:
    """Every package that the workbook needs against its pin, and what is loaded against what is installed."""
    loaded = version_warnings({name: found for name in PACKAGES if (found := installed_version(name))})
    if loaded:
        return problem("versions", "; ".join(loaded), "restart the kernel or the session")
    wrong = list(filter(None, map(_mismatch, _requirements())))
    if wrong:
        step = (
            "run `pip install -r requirements-colab.txt`" if in_colab() else "run `make setup`, or `pip install -e .`"
        )
        return problem("versions", "; ".join(wrong), f"{step}, then restart the kernel")
    return ok("versions", f"{len(_requirements())} packages as the workbook pins them")


def _requirements() -> list[str]:
    """What must be installed here: in Colab the few that it lacks, elsewhere all of pyproject.toml."""
    import tomllib

    if in_colab():
        lines = (ROOT / "requirements-colab.txt").read_text(encoding="utf-8").splitlines()
        return [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    with open(ROOT / "pyproject.toml", "rb") as file:
        return tomllib.load(file)["project"]["dependencies"]


def _mismatch(requirement: str) -> str:
    """ "name 1.0 is installed and ==2.0 is wanted", or "" for a requirement that is met."""
    from packaging.requirements import Requirement

    wanted = Requirement(requirement)
    found = installed_version(wanted.name)
    if found is None:
        return f"{wanted.name} is not installed"
    met = wanted.specifier.contains(found, prereleases=True)
    return "" if met else f"{wanted.name} {found} is installed and {wanted.specifier} is wanted"


def colab(question: Question) -> Finding:
    """Whether this is a Colab session, and of which release."""
    import os

    if not in_colab():
        return not_here("colab", "this is not a Colab session")
    return ok("colab", f"Colab release {os.environ['COLAB_RELEASE_TAG']}, Python {platform.python_version()}")


def vllm(question: Question) -> Finding:
    """Which of vLLM's needs this machine does not meet."""
    import torch

    missing = []
    if sys.platform != "linux":
        missing.append(f"Linux (this is {platform.system()})")
    if not VLLM_PYTHON[0] <= sys.version_info[:2] <= VLLM_PYTHON[1]:
        missing.append(f"Python 3.10 to 3.13 (this is {platform.python_version()})")
    if not torch.cuda.is_available():
        missing.append("an NVIDIA GPU that torch sees")
    elif torch.cuda.get_device_capability() < VLLM_CAPABILITY:
        missing.append(
            f"compute capability 7.0 (this card has {'.'.join(map(str, torch.cuda.get_device_capability()))})"
        )
    if missing:
        step = "use `labkit serve`, llama.cpp or the route rented_gpu; the same tests run against each"
        return problem("vllm", f"vLLM needs {', '.join(missing)}", step)
    found = installed_version("vllm")
    if found is None:
        step = (
            "install it into an environment of its own: it pins its torch; then `labkit serve --runtime vllm --dry-run`"
        )
        return problem("vllm", "vLLM is not installed in this environment", step)
    return _vllm_torch(found)


def _vllm_torch(found: str) -> Finding:
    """Whether the torch that is installed is the one that vLLM was built for."""
    for requirement in importlib.metadata.requires("vllm") or ():
        if re.match(r"torch\s*==", requirement) and (wrong := _mismatch(requirement.split(";")[0])):
            return problem("vllm", f"vLLM {found}: {wrong}", "give vLLM an environment of its own")
    return ok("vllm", f"vLLM {found}, a GPU that it supports, and the torch that it was built for")


def widgets(question: Question) -> Finding:
    """ipywidgets for the kernel, its manager for JupyterLab, the same generation, and not switched off."""
    kernel, manager = installed_version("ipywidgets"), installed_version("jupyterlab_widgets")
    if kernel is None:
        return problem("widgets", "ipywidgets is not installed for this kernel", "run `pip install ipywidgets`")
    if in_colab():
        return ok("widgets", f"ipywidgets {kernel}; Colab brings its own manager")
    found = any((folder / MANAGER / "package.json").is_file() for folder in labextensions())
    if manager is None or not found:
        step = "run `pip install jupyterlab_widgets` where JupyterLab runs, then reload the page"
        return problem("widgets", f"ipywidgets {kernel}, and no {MANAGER} in JupyterLab's folders", step)
    if off := _switched_off():
        return problem("widgets", f"{MANAGER} is disabled in {off}", f"run `jupyter labextension enable {MANAGER}`")
    # jupyterlab_widgets 3 belongs to ipywidgets 8, 1 to ipywidgets 7 (each version's own requirements).
    pair = {"8": "3", "7": "1"}.get(kernel.split(".")[0])
    if pair and manager.split(".")[0] != pair:
        step = f"install them together: `pip install --upgrade ipywidgets jupyterlab_widgets=={pair}.*`"
        return problem("widgets", f"ipywidgets {kernel} beside jupyterlab_widgets {manager}", step)
    return ok("widgets", f"ipywidgets {kernel}, jupyterlab_widgets {manager}, its manager is enabled")


def labextensions() -> list[Path]:
    """Where JupyterLab looks for extensions that were installed with pip."""
    from jupyter_core.paths import jupyter_path

    return [Path(folder) for folder in jupyter_path("labextensions")]


def settings_files() -> list[Path]:
    """Where JupyterLab keeps which extensions are switched off."""
    from jupyter_core.paths import jupyter_config_path, jupyter_path

    return [
        *(Path(folder) / "labconfig" / "page_config.json" for folder in jupyter_config_path()),
        *(Path(folder) / "page_config.json" for folder in jupyter_path("lab", "settings")),
    ]


def _switched_off() -> str:
    """The name of the settings file that disables the manager, "" where none does."""
    for path in settings_files():
        try:
            disabled = json.loads(path.read_text(encoding="utf-8")).get("disabledExtensions", {})
        except (OSError, ValueError, AttributeError):
            continue
        if disabled.get(MANAGER) if isinstance(disabled, dict) else MANAGER in disabled:
            return path.name
    return ""
