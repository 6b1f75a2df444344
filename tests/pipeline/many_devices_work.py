"""What the processes of test_many_devices do together: everything in one start, as a start costs seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cogumi.errors import RunError
from cogumi.stage import Progress
from pipeline.training.fit_many import fit_part
from pipeline.training.world import World, join_world


def several(arguments: Any, progress: Progress, world: World) -> None:
    """Do each of the trainings; the first process leaves what it has to say in files."""
    import torch

    found: dict[str, Any] = {"total": world.total([1.0, world.rank]), "threads": world.threads}
    found["replicated"] = replicated(world)
    found["sharded"] = sharded(join_world("fsdp"))
    for training in arguments:
        joined = join_world(training["strategy"])
        told = {}
        try:
            told = fit_part(training, progress, joined)
        except RunError as error:
            told = {"error": str(error)}
        if joined.first:
            found["threads_used"] = torch.get_num_threads()
            left = json.dumps(told | {"world": found})
            (Path(training["job"]["out"]).parent / "told.json").write_text(left)


def replicated(world: World) -> dict[str, Any]:
    """Sum gradients of 1, 10 and nobody's; the second process lacks one of them."""
    import torch

    both, one, nobody = (torch.nn.Parameter(torch.zeros(2, 2)) for _ in range(3))
    both.grad = torch.full((2, 2), 1.0 + world.rank)
    if world.first:
        one.grad = torch.full((2, 2), 10.0)
    world.sum_gradients([both, one, nobody])
    norm = float(world.clip([both, one, nobody], 1.0))
    assert both.grad is not None
    assert one.grad is not None
    return {
        "both": both.grad.flatten().tolist(),
        "one": one.grad.flatten().tolist(),
        "nobody": nobody.grad is None,
        "norm": norm,
    }


def sharded(world: World) -> dict[str, Any]:
    """Take a gradient through weights that two processes share out, a frozen bf16 one among them."""
    import torch

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = torch.nn.Parameter(torch.eye(3, dtype=torch.bfloat16), requires_grad=False)
            self.trained = torch.nn.Parameter(torch.arange(15.0).view(5, 3))

        def forward(self, row: torch.Tensor) -> torch.Tensor:
            return self.trained @ (self.frozen @ row.bfloat16()).float()

    class Model(torch.nn.Module):
        _no_split_modules = ("Layer",)

        def __init__(self) -> None:
            super().__init__()
            self.layer = Layer()

        def forward(self, row: torch.Tensor) -> torch.Tensor:
            return self.layer(row).sum()

    model = Model()
    world.spread(model)
    for row, weight in world.turns(list(torch.eye(3))):
        (weight * model(row)).backward()
    trained = model.layer.trained
    world.sum_gradients([trained])
    norm = float(world.clip([trained], 1.0))
    assert trained.grad is not None
    found = {
        "held": [model.layer.frozen.to_local().numel(), trained.to_local().numel()],
        "norm": norm,
        "gradient": world.whole(trained.grad).flatten().tolist(),
    }
    world.fill(trained.detach(), torch.arange(30.0, 45.0).view(5, 3))
    return found | {"filled": world.whole(trained.detach()).flatten().tolist()}
