"""Random masks, and the weights under them as the engines' kernels take them."""

from __future__ import annotations

import torch
from torch import Tensor

_PLACES = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))


def random_codes(n: int, k: int, device: torch.device, seed: int) -> Tensor:
    """(n, k/4) uint8 placement codes."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randint(0, 6, (n, k // 4), device=device, dtype=torch.uint8, generator=generator)


def masked(weight: Tensor, codes: Tensor) -> Tensor:
    """(n, k) with zeros where the mask drops."""
    places = torch.tensor(_PLACES, device=codes.device)[codes.long()]
    keep = torch.zeros(*codes.shape, 4, dtype=torch.bool, device=codes.device)
    keep.scatter_(-1, places, True)
    return weight * keep.reshape(weight.shape)


def kept_and_codes(weight: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """(n, k/2) kept values, and (n, k/8) bytes of two codes each, as checkpoints store them."""
    places = torch.tensor(_PLACES, device=codes.device)[codes.long()]
    kept = weight.reshape(len(weight), -1, 4).gather(-1, places).reshape(len(weight), -1)
    return kept, codes[:, 0::2] | codes[:, 1::2] << 4
