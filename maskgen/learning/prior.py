"""Initial logits from a prior mask.

Placement logits follow MaskLLM (arXiv 2409.17481, section 3.3): pi ~ N(0, sigma), then
pi' = pi + std(pi) * sim * alpha. For 2:4 sim(M0, Mi) = <M0, Mi> - 1, which is +1 for the prior's
own placement, 0 for the four that share one weight with it, and -1 for its complement; for N:M it
is <M0, Mi> - N^2/M, so that its mean over all placements is 0 there, too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskgen.format.pattern import TWO_FOUR, Pattern
from maskgen.learning.codes import planes_from_codes
from maskgen.learning.gumbel import placements_like


def gaussian(shape: tuple[int, ...], sigma: float, seed: int, layer: int) -> Tensor:
    """N(0, sigma) that depends on (seed, layer) alone."""
    generator = torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + layer) % 2**63)
    return torch.randn(shape, generator=generator).mul_(sigma)


def similarity(device: torch.device, pattern: Pattern = TWO_FOUR) -> Tensor:
    """(placements, placements): sim(M0, Mi) = <M0, Mi> - N^2/M."""
    placements = placements_like(torch.empty(0, device=device), pattern)
    return placements @ placements.T - pattern.n**2 / pattern.m


def add_placement_prior(
    placement_logits: Tensor, codes: Tensor, alpha: float, pattern: Pattern = TWO_FOUR
) -> None:
    """Bias the logits towards the prior, in place.

    Args:
        placement_logits: (rows, placements, groups).
        codes: (rows, groups), the prior's placement codes.
        alpha: strength in standard deviations of this layer's logits.
    """
    sigma = placement_logits.std().item()
    sim = similarity(placement_logits.device, pattern) * (sigma * alpha)
    for placement in range(pattern.placements):
        placement_logits[:, placement] += sim[placement][codes.long()]


def add_weight_prior(
    weight_logits: Tensor, codes: Tensor, margin: float, pattern: Pattern = TWO_FOUR
) -> None:
    """Raise the kept weights' logits by `margin`, in place; (rows, M, groups)."""
    kept = planes_from_codes(codes, pattern).to(weight_logits.device)
    weight_logits += margin * kept
