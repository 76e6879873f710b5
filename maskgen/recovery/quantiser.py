"""Fake quantisation of kept weights: int8 or int4 values on a grid of their own for every block.

    w = scale * value

A *block* is consecutive inputs of one row, its scale an fp16 number. An int8 value is -127 to 127.
An int4 value is `8 level + minimum` with a level of 0 to 15, so that a step is 8 scales; the
minimum, -127 to 7, is the block's own or -64, which makes levels -8 to 7 steps (the layouts of
`engines.native` store these numbers). The grid is fitted to the kept weights anew in every forward
pass, and gradients pass through it unchanged (straight-through; Bengio et al., arXiv 1308.3432).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from maskgen.learning.native import native_module

Values = Literal["int8", "int4"]
STEP = 8
"""int4 values between two levels."""
SYMMETRIC_MINIMUM = -8.0 * STEP
"""The minimum of blocks without one of their own: level 8 is 0."""
_SMALLEST = 2.0**-24  # of fp16: a block of zeros has a scale all the same


@dataclass(frozen=True, slots=True)
class WeightGrid:
    """How weights are quantised.

    Attributes:
        values: `int8` or `int4`.
        block: inputs that share a scale; a row's last block may be shorter.
        minima: int4 blocks have a minimum of their own, in place of the symmetric grid.
    """

    values: Values
    block: int = 32
    minima: bool = False


@dataclass(frozen=True, slots=True)
class Quantised:
    """Weights on a grid.

    Attributes:
        numbers: (N, blocks, block) int8 values or int4 levels, in the type of the weights. Padding
            is at the end of a row's last block.
        scales: (N, blocks, 1), of fp16's numbers.
        minima: (N, blocks, 1) or (), of int4; None for int8.
    """

    numbers: Tensor
    scales: Tensor
    minima: Tensor | None = None

    def weight(self, columns: int) -> Tensor:
        """(N, columns): what the numbers stand for."""
        values = self.numbers if self.minima is None else self.numbers * STEP + self.minima
        return (values * self.scales).flatten(1)[:, :columns]


def quantise(weight: Tensor, keep: Tensor, grid: WeightGrid) -> Quantised:
    """Fit a grid to the kept weights of every block and round them to it, to the nearest value.

    Args:
        weight: (N, K) fp32.
        keep: (N, K) bool; what is dropped gets a value too, which means nothing.
        grid: what kind.
    """
    blocks = _blocks(weight.masked_fill(~keep, 0), grid.block)
    if grid.values == "int8":
        scales = _fp16(blocks.abs().amax(dim=2, keepdim=True) / 127)
        return Quantised((blocks / scales).round_().clamp_(-127, 127), scales)
    if not grid.minima:
        scales = _fp16(blocks.abs().amax(dim=2, keepdim=True) / (7 * STEP))
        levels = (blocks / (scales * STEP)).round_().clamp_(-8, 7)
        return Quantised(levels + 8, scales, levels.new_tensor(SYMMETRIC_MINIMUM))
    kept = _blocks(keep, grid.block)
    low = blocks.masked_fill(~kept, torch.inf).amin(dim=2, keepdim=True).clamp(max=0)
    high = blocks.masked_fill(~kept, -torch.inf).amax(dim=2, keepdim=True).clamp(min=0)
    scales = _fp16((high - low) / (15 * STEP))
    minima = (low / scales).round_().clamp_(-127, 7)
    levels = ((blocks / scales - minima) / STEP).round_().clamp_(0, 15)
    return Quantised(levels, scales, minima)


def fake_quantise(model: nn.Module, keep: dict[str, Tensor], grid: WeightGrid) -> None:
    """Let the masked linears multiply by their quantised weights; what is tuned stays as it was.

    Args:
        model: in fp32. On the CPU a native kernel (`maskgen/csrc/grid.h`) makes what `quantise`
            makes, bit for bit and in one pass.
        keep: of the linears by name, (N, K) bool each.
        grid: what they are rounded to.
    """
    for name, kept in keep.items():
        module = model.get_submodule(name)
        parametrize.register_parametrization(module, "weight", _OnGrid(kept, grid))


class _OnGrid(nn.Module):
    """weight -> the same on its grid, zero where it is dropped."""

    keep: Tensor

    def __init__(self, keep: Tensor, grid: WeightGrid) -> None:
        super().__init__()
        self.register_buffer("keep", keep, persistent=False)
        self._grid = grid

    def forward(self, weight: Tensor) -> Tensor:
        apply: Any = _StraightThrough.apply
        quantised: Tensor = apply(weight, self.keep, self._grid)
        return quantised


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, keep: Tensor, grid: WeightGrid) -> Tensor:
        if weight.device.type != "cpu":
            return quantise(weight, keep, grid).weight(weight.shape[1]).masked_fill_(~keep, 0)
        out, int4 = torch.empty_like(weight), grid.values == "int4"
        native_module().fake_quantise(
            weight, keep.view(torch.uint8), out, grid.block, int4, grid.minima
        )
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None


def _blocks(weight: Tensor, block: int) -> Tensor:
    """(N, blocks, block), the last one filled up with zeros."""
    missing = -weight.shape[1] % block
    padded = F.pad(weight, (0, missing)) if missing else weight
    return padded.reshape(len(weight), -1, block)


def _fp16(scales: Tensor) -> Tensor:
    """Rounded to fp16's numbers, and never 0."""
    return scales.clamp_min(_SMALLEST).half().to(scales.dtype)
