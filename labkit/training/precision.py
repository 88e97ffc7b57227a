"""Which number format a run computes in, with the reason, as the training evidence states it."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import torch

from labkit.environment import sixteen_bits
from labkit.errors import LabError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# What /proc/cpuinfo calls the instructions for bfloat16 matrix products; a CPU without them imitates it, slowly.
CPU_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


@dataclass(frozen=True)
class Precision:
    """`name` is fp32, bf16 or fp16. Weights and optimizer stay in fp32; the other two are for matrix products."""

    name: str
    reason: str

    def autocast(self, device: str) -> contextlib.AbstractContextManager:
        """The context for forward passes: nothing for fp32."""
        return contextlib.nullcontext() if self.name == "fp32" else torch.autocast(device, DTYPES[self.name])

    @property
    def scaled(self) -> bool:
        """Whether gradients must be scaled: fp16 has too few exponent bits for small ones."""
        return self.name == "fp16"


def choose_precision(wanted: str = "auto", device: str = "cpu") -> Precision:
    """bf16 where the device multiplies it in hardware, fp16 on an older NVIDIA GPU such as the T4, fp32 elsewhere.

    Raises LabError for a name that is no precision, and for fp16 on anything but CUDA.
    """
    if wanted != "auto":
        if wanted not in DTYPES:
            raise LabError(f"there is no precision called {wanted!r}", f"choose auto, {', '.join(DTYPES)}")
        if wanted == "fp16" and device != "cuda":
            raise LabError(f"fp16 training needs a CUDA device, and this run is on {device}", "use auto, bf16 or fp32")
        return Precision(wanted, f"asked for with --precision {wanted}")
    if device == "cuda":
        name, reason = sixteen_bits()
        return Precision(name, reason + (" with a scaler" if name == "fp16" else ""))
    if device == "mps":
        return Precision("fp32", "on Apple GPUs this loop was only ever written for fp32")
    if found := sorted(CPU_BF16_FLAGS & cpu_flags()):
        return Precision("bf16", f"the processor has {', '.join(found)}")
    return Precision("fp32", "the processor has no bf16 instructions that this program can see")


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """The processor's instruction sets, where Linux lists them ("flags" on x86, "Features" on ARM); else nothing."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split(":", 1)[1].split()}
