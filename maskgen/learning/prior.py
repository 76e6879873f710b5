"""Initial logits from a prior mask.

Placement logits follow MaskLLM (arXiv 2409.17481, section 3.3): pi ~ N(0, sigma), then
pi' = pi + std(pi) * sim * alpha with sim(M0, Mi) = <M0, Mi> - N/2, which is +1 for the prior's own
placement, 0 for the four that share one weight with it, and -1 for its complement.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskgen.format.two_four import PAIRS
from maskgen.learning.gumbel import placements_like


def gaussian(shape: tuple[int, ...], sigma: float, seed: int, layer: int) -> Tensor:
    """N(0, sigma) that depends on (seed, layer) alone."""
    generator = torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + layer) % 2**63)
    return torch.randn(shape, generator=generator).mul_(sigma)


def similarity(device: torch.device) -> Tensor:
    """(6, 6): sim(M0, Mi) = <M0, Mi> - 1."""
    placements = placements_like(torch.empty(0, device=device))
    return placements @ placements.T - 1.0


def add_placement_prior(placement_logits: Tensor, codes: Tensor, alpha: float) -> None:
    """Bias the logits towards the prior, in place.

    Args:
        placement_logits: (rows, 6, groups).
        codes: (rows, groups), the prior's placement codes.
        alpha: strength in standard deviations of this layer's logits.
    """
    sigma = placement_logits.std().item()
    sim = similarity(placement_logits.device) * (sigma * alpha)
    for placement in range(6):
        placement_logits[:, placement] += sim[placement][codes.long()]


def add_weight_prior(weight_logits: Tensor, codes: Tensor, margin: float) -> None:
    """Raise the kept weights' logits by `margin`, in place; (rows, 4, groups)."""
    pairs = torch.from_numpy(PAIRS.astype("int64")).to(weight_logits.device)
    positions = pairs[codes.long()].movedim(-1, 1)  # (rows, 2, groups)
    lift = torch.full_like(positions, margin, dtype=weight_logits.dtype)
    weight_logits.scatter_add_(1, positions, lift)
