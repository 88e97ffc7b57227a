"""Several processes for one run, as torchrun starts them: every process a copy (DDP) or a share (FSDP) of the model.

    torchrun --nproc-per-node 2 -m labkit.cli train --out DIR

A step's windows are those that one process with as large a batch would draw; each process takes its share of them,
gradients are averaged, and process 0 alone writes files. So two processes learn what one with twice the batch learns.
"""

import os
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from labkit.errors import LabError

WAYS = ("ddp", "fsdp")


@dataclass(frozen=True)
class World:
    """The processes of one run. `way` is ddp (each holds the whole model) or fsdp (each holds a share of it)."""

    rank: int
    size: int
    way: str = "ddp"

    @property
    def first(self) -> bool:
        """Whether this process writes the files and shows the progress."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """This process's part of a batch of all: (size * n, ...) to (n, ...)."""
        return batch.chunk(self.size)[self.rank]


ALONE = World(0, 1)


def join_world(device: str, way: str = "ddp") -> World:
    """The world that torchrun's variables describe, joined over NCCL on CUDA and Gloo elsewhere; ALONE without them.

    Raises LabError for a way that is no way, and for more processes than GPUs.
    """
    if way not in WAYS:
        raise LabError(f"there is no parallel way called {way!r}", f"choose {' or '.join(WAYS)}")
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    local = int(os.environ["LOCAL_RANK"])
    if device == "cuda":
        if local >= torch.cuda.device_count():
            what = f"process {local} has no GPU of its own: this machine has {torch.cuda.device_count()}"
            raise LabError(what, "start as many processes per machine as it has GPUs")
        torch.cuda.set_device(local)
    distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    return World(distributed.get_rank(), size, way)


def wait_for_all(world: World) -> None:
    """Return when every process has come so far: one that is still at work may abort when another has hung up."""
    if world.size > 1:
        distributed.barrier()


def leave_world(world: World) -> None:
    if world.size > 1:
        distributed.destroy_process_group()


def spread(model: nn.Module, world: World, device: str) -> nn.Module:
    """`model` as this world trains it: itself when alone, wrapped for DDP, or sharded in place block by block."""
    if world.size == 1:
        return model
    if world.way == "ddp":
        return nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)  # masks, the same everywhere
    from torch.distributed.fsdp import fully_shard

    mesh = distributed.init_device_mesh(device, (world.size,))
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            for block in module:
                fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def average_gradients(model: nn.Module, world: World, now: bool) -> None:
    """Whether the next backward pass averages gradients: only the last of the batches that make one step should."""
    if world.size == 1:
        return
    if world.way == "ddp":
        model.require_backward_grad_sync = now
    else:
        model.set_requires_gradient_sync(now)


def mean_over(value: Tensor, world: World) -> Tensor:
    """The mean of every process's `value`."""
    if world.size > 1:
        distributed.all_reduce(value)
        value = value / world.size
    return value


def gathered(value: object, world: World) -> list:
    """Every process's `value`, by rank."""
    if world.size == 1:
        return [value]
    values: list = [None] * world.size
    distributed.all_gather_object(values, value)
    return values


def whole_state(model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> tuple[dict, dict]:
    """The states of model and optimizer as if one process held them. With FSDP every process must call this."""
    if world.size == 1:
        return model.state_dict(), optimizer.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict  # a second to load

    return get_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def load_whole_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, world: World, held: dict, optimizer_held: dict
) -> None:
    """Give each process its part of what `whole_state` returned."""
    if world.size == 1:
        model.load_state_dict(held)
        optimizer.load_state_dict(optimizer_held)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    set_state_dict(
        model,
        optimizer,
        model_state_dict=held,
        optim_state_dict=optimizer_held,
        options=StateDictOptions(full_state_dict=True),
    )
