"""An engine on more than one GPU: tensor and pipeline parallelism, and what the other machines have to run.

Tensor parallelism splits each layer over the GPUs of a machine, which then talk at every layer; pipeline parallelism
gives each machine some of the layers, so that only their borders cross the network. vLLM joins machines by Ray, SGLang
by the same command on each.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from string import Formatter

from labkit.errors import LabError

SIZES = ("tensor_parallel_size", "pipeline_parallel_size", "machines")


@dataclass(frozen=True)
class Cluster:
    """How many GPUs share a model and on how many machines; None is the engine's default, one.

    `first_machine` is the address of this machine, the first, at which the others reach it.
    """

    tensor_parallel_size: int | None = None
    pipeline_parallel_size: int | None = None
    machines: int | None = None
    first_machine: str | None = None

    def __post_init__(self):
        for name in SIZES:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise LabError(f"{value} is no number of GPUs or machines", f"give --{_flag(name)} at least 1")
        if (self.several and not self.first_machine) or (self.first_machine and not self.several):
            what = "several machines and the address of the first belong together"
            raise LabError(what, "give --machines 2 or more with --first-machine ADDRESS, or neither")
        gpus = (self.tensor_parallel_size or 1) * (self.pipeline_parallel_size or 1)
        if gpus % (self.machines or 1):
            what = f"{gpus} GPUs do not spread evenly over {self.machines} machines"
            raise LabError(what, "set tensor x pipeline parallel size to GPUs of a machine x machines")

    @property
    def several(self) -> bool:
        return (self.machines or 1) > 1

    @property
    def given(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if value is not None}

    def words(self, template: str, machine: int = 0) -> list[str]:
        """`template`'s options, each a flag and its value, that this has values for, as `machine` needs them."""
        values: Mapping = {**self.given, **({"executor": "ray", "machine": machine} if self.several else {})}
        options = zip(*[iter(shlex.split(template))] * 2, strict=True)
        chosen = [(flag, value) for flag, value in options if _names(value) <= values.keys()]
        return [word.format_map(values) for option in chosen for word in option]

    def joining(self, template: str) -> list[str]:
        """What to run on which machine before the engine starts on the first: lines of `template`, "first | other"."""
        if not self.several or not template:
            return []
        first, others = (part.strip().format_map(self.given) for part in template.split("|"))
        return [f"before, on this machine: {first}", f"before, on every other machine: {others}"]


def _names(template: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(template) if name}


def _flag(name: str) -> str:
    return name.replace("_", "-")
