"""Checks of the machine: memory, disk, device, and what else it computes."""

import os
import shutil
import subprocess
from pathlib import Path

import psutil

from labkit.doctor.findings import Finding, Question, not_here, ok, problem
from labkit.environment import GIB, choose_device
from labkit.errors import LabError
from labkit.landscape.configs import model_at
from labkit.landscape.memory import find_quantization as form
from labkit.landscape.memory import memory_estimate, weight_bytes
from labkit.layout import ROOT

FREE_MEMORY_GIB = 1.0  # the stop rule of the route local_cpu
FREE_DISK_GIB = 2.0  # a pack with its notebooks and the exported graphs take some hundred megabytes
FULL_GPU = 0.5  # share of a card's memory that others may hold before it is worth a word
BUSY = 1.25  # waiting or running processes for each core
HOLDERS = "--query-compute-apps=pid,process_name,used_memory"


def free_memory(question: Question) -> Finding:
    """RAM that a new process could have, and swap in use."""
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    seen = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free, {swap.used / GIB:.1f} GiB in swap"
    if memory.available < FREE_MEMORY_GIB * GIB:
        largest = ", ".join(_largest(3))
        return problem("free_memory", f"{seen}; the largest: {largest}", "close what you do not need of these")
    return ok("free_memory", seen)


def _largest(count: int) -> list[str]:
    """The processes with the most resident memory, as "name (1.2 GiB)"."""
    held = [
        (p.info["memory_info"].rss, p.info["name"])
        for p in psutil.process_iter(["name", "memory_info"])
        if p.info["memory_info"]
    ]
    return [f"{name} ({size / GIB:.1f} GiB)" for size, name in sorted(held, reverse=True)[:count]]


def free_disk(question: Question) -> Finding:
    """Room for the workbook's own files, and for the model's weights where it must be downloaded."""
    from huggingface_hub.constants import HF_HUB_CACHE

    needs = {
        "the workbook": (ROOT, FREE_DISK_GIB),
        "the hub cache": (Path(HF_HUB_CACHE), _download_gib(question.model)),
    }
    free = {name: shutil.disk_usage(_existing(path)).free / GIB for name, (path, _) in needs.items()}
    seen = ", ".join(f"{free[name]:.1f} GiB free for {name}" for name in needs)
    for name, (_, need) in needs.items():
        if free[name] < need:
            step = f"free {need - free[name]:.1f} GiB, or set HF_HOME to a larger disk"
            return problem("free_disk", f"{seen}; {name} wants {need:.1f} GiB", step)
    return ok("free_disk", seen)


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())


def _download_gib(model: str) -> float:
    """GiB of the model's weights in 16 bit; 0 for one that is here already, or whose size nobody knows."""
    try:
        row = model_at(model)
    except LabError:
        return 0.0
    size, _ = weight_bytes(row, form("bf16"))
    return 0.0 if size is None or "/" not in row.repo_id else size / GIB


def gpu_memory(question: Question) -> Finding:
    """What the card has free, and who holds the rest."""
    import torch

    if not torch.cuda.is_available():
        return not_here("gpu_memory", f"torch {torch.__version__} sees no NVIDIA GPU, so no memory of one can run out")
    free, total = torch.cuda.mem_get_info()
    seen = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free on {torch.cuda.get_device_name()}"
    if free < (1 - FULL_GPU) * total:
        step = "end the processes that `nvidia-smi` lists and that you no longer need; restart forgotten kernels"
        return problem("gpu_memory", f"{seen}; held by: {_holders() or 'nobody that nvidia-smi names'}", step)
    return ok("gpu_memory", seen)


def _holders() -> str:
    command = ["nvidia-smi", HOLDERS, "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return "; ".join(line.strip() for line in done.stdout.splitlines() if line.strip())


def model_fits(question: Question) -> Finding:
    """The memory that `labkit memory` computes for the model against what is free where it would run."""
    estimate = memory_estimate(question.model)
    place, free = where_it_runs()
    if estimate.total_gib is None:
        return not_here("model_fits", f"{estimate.model}: {'; '.join(estimate.reasons)}")
    seen = f"{estimate.model} in bf16 with 4,096 tokens: {estimate.total_gib:.1f} GiB; {free:.1f} GiB free in {place}"
    if estimate.total_gib > free:
        step = f"run `labkit memory {estimate.model} --quant AWQ` or with a shorter --context, or take a smaller model"
        return problem("model_fits", seen, step)
    return ok("model_fits", seen)


def where_it_runs() -> tuple[str, float]:
    """The memory that a model goes to, and how much of it is free, in GiB."""
    import torch

    if torch.cuda.is_available():
        return "the GPU", torch.cuda.mem_get_info()[0] / GIB
    return "RAM", psutil.virtual_memory().available / GIB


def device(question: Question) -> Finding:
    """Whether the fastest device of this machine is the one that is used."""
    chosen = choose_device()
    seen = f"{chosen.name}: {chosen.reason}"
    if chosen.name == "cpu" and _has_nvidia():
        step = "install torch's CUDA build: `pip install --force-reinstall torch` with pytorch.org's index for CUDA"
        return problem("device", f"{seen}, but this machine has an NVIDIA driver", step)
    return ok("device", seen)


def _has_nvidia() -> bool:
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()


def load(question: Question) -> Finding:
    """Whether other programs take the processor: two threads of torch then wait for each other at every operation."""
    import torch

    count, waiting, threads = cores(), psutil.getloadavg()[0], torch.get_num_threads()
    seen = f"load {waiting:.1f} on {count} cores in the last minute; threads of torch: {threads}"
    if threads > count:
        return problem("load", seen, f"set OMP_NUM_THREADS={count}: more threads than cores wait for each other")
    if waiting > BUSY * count:
        busiest = ", ".join(_busiest(3))
        return problem("load", f"{seen}; the busiest: {busiest}", "end them, or measure again when they are done")
    return ok("load", seen)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _busiest(count: int, seconds: float = 0.2) -> list[str]:
    """The processes that took most processor time within `seconds`, as "name (85 %)"; of one core."""
    processes = list(psutil.process_iter(["name"]))
    for process in processes:
        _percent(process)
    psutil.cpu_percent(seconds)
    shares = [(_percent(process), process.info["name"]) for process in processes]
    return [f"{name} ({share:.0f} %)" for share, name in sorted(shares, reverse=True)[:count]]


def _percent(process: psutil.Process) -> float:
    try:
        return process.cpu_percent()
    except psutil.Error:
        return 0.0
