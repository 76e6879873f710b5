"""A masked low-rank difference of the kept weights: W + keep * (B A), merged in the end."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from maskgen.recovery.parameters import Tuned


def add_low_rank(model: nn.Module, keep: Mapping[str, Tensor], rank: int, seed: int) -> None:
    """Give every masked linear a low-rank difference, 0 at first, in place of a weight of its own.

    As LoRA (arXiv 2106.09685): A is normal with variance 1 / K, B is 0.

    Args:
        rank: of the difference.
        seed: of A.
    """
    random = torch.Generator().manual_seed(seed)
    for name, kept in keep.items():
        linear = model.get_submodule(name)
        rows, columns = kept.shape
        first = torch.randn(rank, columns, generator=random) / columns**0.5
        difference = _Difference(
            first.to(kept.device), torch.zeros(rows, rank).to(kept.device), kept
        )
        parametrize.register_parametrization(linear, "weight", difference)


def low_rank_parameters(model: nn.Module) -> dict[str, Tuned]:
    """Name -> the factors that `add_low_rank` made; nothing of them is masked."""
    return {
        name: Tuned(parameter)
        for name, parameter in model.named_parameters()
        if ".parametrizations.weight.0." in name
    }


class _Difference(nn.Module):
    keep: Tensor

    def __init__(self, first: Tensor, second: Tensor, keep: Tensor) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(first), nn.Parameter(second)
        self.register_buffer("keep", keep, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.second @ self.first) * self.keep
