"""The machine below the lessons: arithmetic, memory, disk, and what starting a process takes."""

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure

from labkit.errors import LabError
from labkit.evidence import Pack
from labkit.forecast.timing import seconds_each, seconds_of
from labkit.layout import ROOT, without_paths

SIDE = 768  # of the matrices: large enough that a CPU's cores and a GPU's units are all at work
COPIED = 64 * 2**20  # bytes: far more than a processor's caches hold
WRITTEN = 32 * 2**20
# What a lesson's kernel loads before its first answer, and what the processes beside it do.
KERNEL_IMPORTS = "import IPython, pandas, matplotlib.pyplot, torch, transformers, labkit.generation, labkit.plots"
PROCESS_IMPORTS = "import torch, labkit.training.mini_gpt2"
PEAK = "; from labkit.environment import peak_memory_mib; print(peak_memory_mib())"


def matrix_flops(device: str, seconds: float = 0.5) -> float:
    """Floating-point operations per second of a product of two square float32 matrices (2 n^3 each)."""
    left, right = (torch.randn(SIDE, SIDE, device=device) for _ in range(2))

    def product() -> None:
        torch.mm(left, right)
        _wait(device)

    return 2 * SIDE**3 / seconds_each(product, seconds)


def memory_bandwidth(device: str, seconds: float = 0.3) -> float:
    """Bytes per second of a copy within the device's memory, read and written bytes together."""
    source = torch.ones(COPIED // 4, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)
        _wait(device)

    return 2 * COPIED / seconds_each(copy, seconds)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def disk_bandwidth(folder: Path) -> float:
    """Bytes per second of a file that is written and flushed to the disk."""
    block = os.urandom(WRITTEN)

    def write() -> None:
        with open(folder / "written", "wb") as file:
            file.write(block)
            file.flush()
            os.fsync(file.fileno())

    return WRITTEN / min(seconds_of(write) for _ in range(2))


def pack_write(folder: Path) -> float:
    """Seconds for a small file to be entered into a pack: written, hashed, listed with the workbook's commit."""
    pack = Pack(folder / "pack", "local_cpu")
    return seconds_each(lambda: pack.write_text("small.txt", "small", "13.1"), 0.2, most=5)


def figure() -> float:
    """Seconds for one plot to become a picture."""
    return seconds_each(_picture, 0.2, most=5)


def _picture() -> None:
    drawn = Figure((7.0, 3.6), layout="constrained")
    drawn.subplots().plot(range(10), label="line")
    drawn.legend()
    drawn.savefig(io.BytesIO(), format="png", dpi=100)


def process_start(imports: str) -> tuple[float, float]:
    """Seconds for a Python process that loads `imports` and ends, and the most memory it held, in MiB.

    Raises LabError with the process's last line where it cannot load them.
    """
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", imports + PEAK], cwd=ROOT, capture_output=True, text=True, check=False)
    took = time.perf_counter() - started
    if done.returncode:
        last = without_paths(done.stderr.strip().splitlines()[-1])
        raise LabError(f"a process with the libraries of a lesson does not start: {last}", "run `labkit doctor`")
    return took, float(done.stdout.splitlines()[-1])
