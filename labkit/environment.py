"""What machine is this, and which device should be used, with the reason.

This room is on the ground floor and must load without torch, so torch is imported inside the two functions that ask it.
The report is made to be shared: it holds no user name, host name, token or home path.
"""

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import psutil

from labkit.errors import LabError
from labkit.layout import ROOT

GIB = 2**30
DEVICES = ("auto", "cpu", "cuda", "mps")
PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "tokenizers",
    "safetensors",
    "onnxruntime",
    "onnxruntime-genai",
    "numpy",
    "pandas",
    "matplotlib",
    "fastapi",
    "uvicorn",
    "pydantic",
    "openai",
    "jupyterlab",
    "ipykernel",
    "ipywidgets",
    "papermill",
    "nbval",
)


@dataclass(frozen=True)
class Device:
    """A torch device's name and why it was chosen."""

    name: str
    reason: str


@dataclass(frozen=True)
class EnvironmentReport:
    """The machine a claim is made on. Sizes are GiB (2^30 bytes); "none" where there is no such thing."""

    python: str
    platform: str
    cpu: str
    cores: int
    ram_gib: float
    disk_free_gib: float
    torch: str
    device: str
    device_reason: str
    cuda: bool
    mps: bool
    gpu: str
    vram_gib: str
    driver: str
    colab: bool
    packages: dict[str, str]
    warnings: tuple[str, ...]

    def as_dict(self) -> dict:
        return asdict(self)

    def as_text(self) -> str:
        """`key: value` lines, the layout of environment_report.txt."""
        lines = [
            f"Python: {self.python}",
            f"Platform: {self.platform}",
            f"CPU: {self.cpu}, {self.cores} cores",
            f"RAM: {self.ram_gib} GiB",
            f"Disk free: {self.disk_free_gib} GiB",
            f"torch: {self.torch}",
            f"Device: {self.device}",
            f"Device reason: {self.device_reason}",
            f"CUDA: {'available' if self.cuda else 'not available'}",
            f"MPS: {'available' if self.mps else 'not available'}",
            f"GPU: {self.gpu}",
            f"VRAM: {self.vram_gib}",
            f"Driver: {self.driver}",
            f"Colab: {'yes' if self.colab else 'no'}",
        ]
        lines += [f"Package {name}: {version}" for name, version in self.packages.items()]
        lines += [f"Warning: {warning}" for warning in self.warnings]
        return "\n".join(lines) + "\n"


def choose_device(wanted: str = "auto") -> Device:
    """The device to use. auto prefers CUDA, then MPS, then the CPU.

    Raises LabError when a device is asked for by name and is not there: a run must never fall back in silence.
    """
    if wanted not in DEVICES:
        raise LabError(f"there is no device called {wanted!r}", f"choose one of {', '.join(DEVICES)}")
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    why_no_cuda = _why_no_cuda(torch) if not cuda else ""
    if wanted == "cuda" and not cuda:
        raise LabError(
            f"the device cuda was asked for and {why_no_cuda}",
            "use --device auto or cpu, or move to a route with a GPU and install a CUDA build of torch there",
        )
    if wanted == "mps" and not mps:
        raise LabError("the device mps was asked for and this is not an Apple GPU", "use --device auto or cpu")
    if wanted != "auto":
        return Device(wanted, f"asked for with --device {wanted}")
    if cuda:
        return Device("cuda", "an NVIDIA GPU is visible to torch")
    if mps:
        return Device("mps", "an Apple GPU is visible to torch, and no NVIDIA GPU")
    return Device("cpu", why_no_cuda)


def _why_no_cuda(torch) -> str:
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    return f"torch {torch.__version__} was built for CUDA {torch.version.cuda} but sees no NVIDIA GPU"


def environment_report(device: str = "auto") -> EnvironmentReport:
    """Look at this machine. Raises LabError as `choose_device` does."""
    import torch

    chosen = choose_device(device)
    versions = {name: version for name in PACKAGES if (version := installed_version(name))}
    cuda = torch.cuda.is_available()
    properties = torch.cuda.get_device_properties(0) if cuda else None
    return EnvironmentReport(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        ram_gib=round(psutil.virtual_memory().total / GIB, 1),
        disk_free_gib=round(shutil.disk_usage(ROOT).free / GIB, 1),
        torch=torch.__version__,
        device=chosen.name,
        device_reason=chosen.reason,
        cuda=cuda,
        mps=torch.backends.mps.is_available(),
        gpu=properties.name if properties else "none",
        vram_gib=f"{properties.total_memory / GIB:.1f} GiB" if properties else "none",
        driver=_driver_version() if cuda else "none",
        colab=in_colab(),
        packages=versions,
        warnings=version_warnings(versions),
    )


def in_colab() -> bool:
    return "COLAB_RELEASE_TAG" in os.environ


def in_kaggle() -> bool:
    return "KAGGLE_KERNEL_RUN_TYPE" in os.environ


class Gpu(NamedTuple):
    """The first NVIDIA GPU; `gib` is its memory (2^30 bytes)."""

    name: str
    gib: float


def visible_gpu() -> Gpu | None:
    """The GPU that torch would use, None without CUDA."""
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return Gpu(properties.name, properties.total_memory / GIB)


def sixteen_bits() -> tuple[str, str]:
    """bf16 or fp16, whichever the tensor cores of the GPU multiply, and why.

    bf16 begins with compute capability 8.0 (NVIDIA, CUDA C++ Programming Guide, "Compute Capabilities"): an A100 has
    8.0 and an L4 8.9; a T4 has 7.5, imitates bf16 and is slow at it, whatever torch.cuda.is_bf16_supported says.
    """
    import torch

    major, minor = torch.cuda.get_device_capability()
    capable = f"the GPU has compute capability {major}.{minor}"
    return ("bf16", f"{capable}, and bf16 begins at 8.0") if major >= 8 else ("fp16", f"{capable}: no bf16, so fp16")


def installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def version_warnings(on_disk: dict[str, str]) -> tuple[str, ...]:
    """One line for each package whose loaded version is not the installed one: an upgrade under a live kernel.

    The build behind a "+" counts only where both name one: torch from PyPI calls itself 2.13.0+cu130 once loaded, and
    2.13.0 on the disk.
    """
    warnings = []
    for name, version in on_disk.items():
        loaded = getattr(sys.modules.get(name), "__version__", None)
        if loaded and not _same_version(loaded, version):
            warnings.append(f"{name} {loaded} is loaded but {version} is on the disk: restart the kernel or session")
    return tuple(warnings)


def _same_version(one: str, other: str) -> bool:
    both_built = "+" in one and "+" in other
    return one == other if both_built else one.partition("+")[0] == other.partition("+")[0]


def requirements_freeze() -> str:
    """Every installed distribution as `name==version`, sorted: what `pip freeze` says, without paths or URLs.

    Of two versions on the path Python imports the first, so the first is told, however the two spell the name.
    """
    found: dict[str, tuple[str, str]] = {}
    for distribution in importlib.metadata.distributions():
        if name := distribution.metadata["Name"]:
            found.setdefault(re.sub(r"[-_.]+", "-", name.lower()), (name.lower(), distribution.version))
    return "".join(f"{name}=={version}\n" for name, version in sorted(found.values()))


def peak_memory_mib() -> float:
    """The most resident memory this process has held, in MiB (2^20 bytes).

    Linux counts in ru_maxrss what the parent held when it started this process; VmHWM is the process's own.
    """
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _driver_version() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "none"
    return done.stdout.strip().splitlines()[0]


def unwatched() -> bool:
    """Whether a program runs this notebook: papermill, nbconvert and nbval tell the kernel that nobody can type."""
    from IPython import get_ipython

    return not getattr(getattr(get_ipython(), "kernel", None), "_allow_stdin", True)
