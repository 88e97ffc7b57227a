"""What a step costs, before and during a run: floating-point work, the share of the GPU's peak, time and memory."""

import ctypes

import torch
from torch import nn

# Dense bf16 (T4: fp16) tensor-core peaks in FLOP/s, by words of the name that the driver gives. All secondary sources,
# seen 2026-11-21: H100 SXM and H200 https://glennklockwood.com/garden/processors/h100; A100
# https://gist.github.com/mikasenghaas/d63ded03f1f0417b1677627119bacc0d; T4
# https://huggingface.co/RajBhope/gpu-runtime-predictor/blob/main/gpu_catalog.json. A GPU that is not here has no MFU.
PEAK_FLOPS = {"H200": 989.4e12, "H100 HBM3": 989.4e12, "A100": 312e12, "T4": 65e12}
# What torch.compile is taken to cost and to bring on a GPU. Neither was measured by this project: verify on yours.
COMPILE_SECONDS, COMPILE_SPEEDUP = 60.0, 1.3
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
LARGEST_MMAP_THRESHOLD = 32 * 2**20  # bytes; glibc refuses more on a 64-bit machine (mallopt(3))


def flops_per_token(model: nn.Module, block_size: int) -> float:
    """Work of one training step per token: 6 N + 12 L W T, forward and backward.

    N parameters without position embeddings, L layers of width W, T tokens of context. Source: Chowdhery et al. 2022
    (PaLM, arXiv 2204.02311), appendix B. The attention term is left out for a model whose sizes have other names.
    """
    positions = sum(p.numel() for name, p in model.named_parameters() if name.endswith("wpe.weight"))
    count = sum(p.numel() for p in model.parameters()) - positions
    config = getattr(model, "config", None)
    layers = getattr(config, "n_layer", None) or getattr(config, "num_hidden_layers", 0)
    width = getattr(config, "n_embd", None) or getattr(config, "hidden_size", 0)
    return 6 * count + 12 * layers * width * block_size


def peak_flops(device: str) -> float | None:
    """The peak of this machine's GPU, or None where the table does not know it (and for every CPU)."""
    if device != "cuda":
        return None
    words = set(torch.cuda.get_device_name().replace("-", " ").split())
    return next((peak for gpu, peak in PEAK_FLOPS.items() if set(gpu.split()) <= words), None)


def worth_compiling(device: str, step_seconds: float, steps_left: int) -> bool:
    """Whether torch.compile earns back its start-up within the run; never on a CPU, where runs here are short."""
    saved = step_seconds * steps_left * (1 - 1 / COMPILE_SPEEDUP)
    return device == "cuda" and saved > COMPILE_SECONDS


def keep_freed_memory() -> None:
    """Let the C library keep the memory that a step has freed for the next step, instead of giving it to the kernel.

    A step of a small model on a CPU takes and frees the same few megabytes over and over. Giving them back costs some
    1,500 page faults a step for the size mini, and up to a fifth of the speed (benchmarks/README.md). glibc only;
    elsewhere nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
    mallopt(M_TRIM_THRESHOLD, 2**30)


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out: CUDA has an exception of its own, a CPU only words."""
    words = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in words or "not enough memory" in words)
    )
