"""The processes that train one model together: how they share gradients, and join and spread tensors.

``ALONE`` is one process. More are started by pipeline.training.launch; each holds the whole step in mind and
takes every n-th bin of it, so that nothing but gradients and two numbers need to travel. The objective
divides by the whole step, so gradients are added up over processes and never averaged.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch

from cogumi.devices import compute_device

if TYPE_CHECKING:
    from pipeline.training.launch import Strategy

Part = TypeVar("Part")

# Bytes of gradients that travel at once: enough to fill the wire, little beside the model.
_BUCKET = 1 << 26


class World:
    """One process that has everything: the base of those that share."""

    rank = 0
    size = 1
    sharded = False
    """Whether a process holds parts of the weights only."""
    threads: int | None = None
    """Threads of this process on a CPU; None leaves them to the caller."""

    @property
    def first(self) -> bool:
        """Tell whether this process writes the files and tells the progress."""
        return self.rank == 0

    def mine(self, parts: Sequence[Part]) -> list[Part]:
        """Return those of the parts of a step that this process takes."""
        return list(parts[self.rank :: self.size])

    def turns(self, parts: Sequence[Part]) -> list[tuple[Part, float]]:
        """Return what this process puts through the model, each with its weight: 1, or 0 to keep step."""
        return [(part, 1.0) for part in self.mine(parts)]

    def loads_on(self, device: torch.device) -> str:
        """Return the device that a model is loaded on, to be trained on ``device``."""
        return str(device)

    def spread(self, module: torch.nn.Module) -> None:
        """Share out a module's weights over the processes, in place, where they are shared out."""

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Add up the gradients of all processes, in place."""

    def total(self, values: Sequence[float]) -> list[float]:
        """Return the sums of some numbers over all processes."""
        return list(values)

    def clip(self, parameters: Iterable[torch.nn.Parameter], most: float) -> torch.Tensor:
        """Scale the gradients down to a norm of at most ``most``; return the norm that they had."""
        return torch.nn.utils.clip_grad_norm_(parameters, most)

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor with the parts that other processes hold."""
        return tensor

    def fill(self, place: torch.Tensor, values: torch.Tensor) -> None:
        """Write a whole tensor into its place, of which this process may hold a part."""
        place.copy_(values)


ALONE = World()


class ReplicatedWorld(World):
    """Processes that each hold the whole model (data parallel): gradients are summed once a step, in buckets.

    accelerate makes the process group from the environment of torchrun: NCCL on GPUs, Gloo on a CPU.
    """

    def __init__(self) -> None:
        from accelerate import PartialState

        cpu = compute_device() == "cpu"
        state = PartialState(cpu=cpu)
        self.rank: int = state.process_index
        self.size: int = state.num_processes
        self.device: torch.device = state.device
        if cpu:
            self.threads = max(1, len(os.sched_getaffinity(0)) // self.size)

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Add up the gradients of all processes; one that has none for a parameter counts as zero."""
        listed = list(parameters)
        present = torch.tensor([float(p.grad is not None) for p in listed], device=self.device)
        torch.distributed.all_reduce(present)
        # A parameter that no process has a gradient for keeps none: the optimizer then leaves it alone.
        touched = [p for p, count in zip(listed, present.tolist(), strict=True) if count]
        for parameter in touched:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([p.grad for p in touched if p.grad is not None]):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            torch.distributed.all_reduce(flat)
            for gradient, summed in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
                gradient.copy_(summed.view_as(gradient))

    def total(self, values: Sequence[float]) -> list[float]:
        """Return the sums of some numbers over all processes, the same in each of them."""
        summed = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(summed)
        found: list[float] = summed.tolist()
        return found


def _buckets(gradients: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Cut gradients into runs of one type and of at most ``_BUCKET`` bytes, one that is larger alone."""
    bucket: list[torch.Tensor] = []
    filled = 0
    for gradient in gradients:
        if bucket and (gradient.dtype != bucket[0].dtype or filled + gradient.nbytes > _BUCKET):
            yield bucket
            bucket, filled = [], 0
        bucket.append(gradient)
        filled += gradient.nbytes
    if bucket:
        yield bucket


class ShardedWorld(ReplicatedWorld):
    """Processes that each hold a part of every weight (FSDP2), the frozen ones included.

    torch's ``fully_shard`` is called directly, layer by layer: accelerate's own way to it averages gradients,
    wants the optimizer before the parameters are what they will be, and takes no CPU (accelerate.state of
    1.15 makes FSDP of several GPUs only). As every forward pass gathers weights from all processes, all make
    the same number of them.
    """

    sharded = True

    def turns(self, parts: Sequence[Part]) -> list[tuple[Part, float]]:
        """Return this process's parts; one that has fewer than others takes the first part at weight 0."""
        rounds = -(-len(parts) // self.size)
        mine = self.mine(parts)
        return [(part, 1.0) for part in mine] + [(parts[0], 0.0)] * (rounds - len(mine))

    def loads_on(self, device: torch.device) -> str:
        """Return ``cpu``: no device need ever hold the whole model."""
        return "cpu"

    def spread(self, module: torch.nn.Module) -> None:
        """Share out the weights of the module: each layer of its transformers is gathered on its own."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        mesh = init_device_mesh(self.device.type, (self.size,))
        modules = list(module.modules())
        layers = {name for found in modules for name in getattr(found, "_no_split_modules", None) or ()}
        for layer in [found for found in modules if type(found).__name__ in layers]:
            fully_shard(layer, mesh=mesh)
        # The loss is the root: it reads the head's weights itself, so they must be whole while it runs.
        fully_shard(module, mesh=mesh)
        for part in modules:
            if isinstance(part, FSDPModule):
                part.set_gradient_divide_factor(1.0)
                # Else a factor, even of 1, goes into the reduction, which Gloo cannot do.
                part.set_force_sum_reduction_for_comms(True)

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Do nothing: the backward pass has added them up already."""

    def clip(self, parameters: Iterable[torch.nn.Parameter], most: float) -> torch.Tensor:
        """Scale the gradients down to a norm of at most ``most`` over all parts; return the norm."""
        listed = list(parameters)
        norm = torch.nn.utils.get_total_norm([p.grad for p in listed if p.grad is not None])
        norm = self.whole(norm)
        torch.nn.utils.clip_grads_with_norm_(listed, most, norm)
        return norm

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the whole tensor, on the CPU: of all weights at once no device may have room."""
        from torch.distributed.tensor import DTensor

        return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor.cpu()

    def fill(self, place: torch.Tensor, values: torch.Tensor) -> None:
        """Write this process's part of a whole tensor, which every process has read, into its place."""
        from torch.distributed.tensor import DTensor, distribute_tensor

        if not isinstance(place, DTensor):
            place.copy_(values)
            return
        whole = values.to(place.device)
        place.copy_(distribute_tensor(whole, place.device_mesh, place.placements, src_data_rank=None))


def join_world(strategy: Strategy) -> World:
    """Join the processes that the environment names; returns once all have come, at once for one alone."""
    if os.environ["WORLD_SIZE"] == "1":
        return ALONE
    return {"ddp": ReplicatedWorld, "fsdp": ShardedWorld}[strategy]()
