"""Data parallel learning under torchrun: all ranks hold all parameters, each a share of AdamW.

Gradients are summed by hand after the last micro-batch (layers with mask logits add into `.grad`
themselves, which hooks would not see) and the optimiser's state is sharded by
`torch.distributed.optim.ZeroRedundancyOptimizer`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class World:
    """This process among its peers; a single process is rank 0 of 1."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """The rank that reports and writes shared files."""
        return self.rank == 0

    def micro_batches(self, per_step: int) -> list[int]:
        """Global indices of this rank's micro-batches in a step.

        Raises:
            ValueError: they cannot be dealt evenly.
        """
        if per_step % self.size:
            raise ValueError(
                f"{per_step} micro-batches a step cannot be dealt evenly to {self.size} ranks; "
                "choose a multiple"
            )
        return list(range(self.rank, per_step, self.size))

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier()

    def sum(self, value: float) -> float:
        """Sum of a number over the ranks."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total)
        return float(total)

    @torch.no_grad()
    def copy_from_first(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make parameters those of rank 0, to the last bit."""
        if self.size > 1:
            for parameter in parameters:
                dist.broadcast(parameter, 0)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum `.grad` over the ranks, in place."""
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:  # no token of this rank came by, as with a rare expert
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)


@contextmanager
def world_from_environment(device: torch.device) -> Iterator[World]:
    """The process group that torchrun describes, or a single process without it."""
    if _ranks() == 1:
        yield World()
        return
    # Numbers that are summed lie on the CPU, whatever the model's device.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def refuse_ranks(what: str) -> None:
    """Refuse to run under torchrun.

    Raises:
        ValueError: there are several ranks.
    """
    if _ranks() > 1:
        raise ValueError(f"{what} runs in one process; start it without torchrun")


def _ranks() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def make_adamw(
    parameters: Sequence[nn.Parameter], world: World, **options: Any
) -> torch.optim.Optimizer:
    """AdamW; over several ranks each keeps the state of its own share of the parameters."""
    if world.size == 1:
        return torch.optim.AdamW(parameters, fused=True, **options)
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return ZeroRedundancyOptimizer(
        parameters, optimizer_class=torch.optim.AdamW, fused=True, **options
    )


def local_optimizer(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimiser whose state this rank holds."""
    return cast(torch.optim.Optimizer, getattr(optimizer, "optim", optimizer))


def adamw_state(
    optimizer: torch.optim.Optimizer, names: Sequence[str], parameters: Sequence[nn.Parameter]
) -> dict[str, Tensor]:
    """This rank's moments, by parameter name."""
    state = local_optimizer(optimizer).state
    tensors: dict[str, Tensor] = {}
    for name, parameter in zip(names, parameters, strict=True):
        for key in ("step", "exp_avg", "exp_avg_sq"):
            if parameter in state:
                tensors[f"{name}.{key}"] = state[parameter][key]
    return tensors


def load_adamw_state(
    optimizer: torch.optim.Optimizer,
    names: Sequence[str],
    parameters: Sequence[nn.Parameter],
    tensors: Mapping[str, Tensor],
) -> None:
    """Give this rank's share of the parameters their moments back.

    A parameter that never had a gradient, as of an expert that no token chose, has none.
    """
    local = local_optimizer(optimizer)
    mine = {id(p) for group in local.param_groups for p in group["params"]}
    for name, parameter in zip(names, parameters, strict=True):
        if id(parameter) in mine and f"{name}.step" in tensors:
            local.state[parameter] = {
                key: tensors[f"{name}.{key}"].to(
                    parameter.device if key != "step" else torch.device("cpu")
                )
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
