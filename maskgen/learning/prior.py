"""Initial logits from a prior mask.

Pattern logits follow MaskLLM (arXiv 2409.17481, section 3.3): pi ~ N(0, sigma), then
pi' = pi + std(pi) * sim * alpha with sim(M0, Mi) = <M0, Mi> - N/2, which is +1 for the prior's own
pattern, 0 for the four that share one weight with it, and -1 for its complement.
"""

from __future__ import annotations

import torch
from torch import Tensor

from maskgen.format.patterns import PAIRS
from maskgen.learning.gumbel import patterns_like


def gaussian(shape: tuple[int, ...], sigma: float, seed: int, layer: int) -> Tensor:
    """N(0, sigma) that depends on (seed, layer) alone."""
    generator = torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + layer) % 2**63)
    return torch.randn(shape, generator=generator).mul_(sigma)


def similarity(device: torch.device) -> Tensor:
    """(6, 6): sim(M0, Mi) = <M0, Mi> - 1."""
    patterns = patterns_like(torch.empty(0, device=device))
    return patterns @ patterns.T - 1.0


def add_pattern_prior(pattern_logits: Tensor, codes: Tensor, alpha: float) -> None:
    """Bias the logits towards the prior, in place.

    Args:
        pattern_logits: (rows, 6, groups).
        codes: (rows, groups), the prior's pattern codes.
        alpha: strength in standard deviations of this layer's logits.
    """
    sigma = pattern_logits.std().item()
    sim = similarity(pattern_logits.device) * (sigma * alpha)
    for pattern in range(6):
        pattern_logits[:, pattern] += sim[pattern][codes.long()]


def add_weight_prior(weight_logits: Tensor, codes: Tensor, margin: float) -> None:
    """Raise the kept weights' logits by `margin`, in place; (rows, 4, groups)."""
    pairs = torch.from_numpy(PAIRS.astype("int64")).to(weight_logits.device)
    positions = pairs[codes.long()].movedim(-1, 1)  # (rows, 2, groups)
    lift = torch.full_like(positions, margin, dtype=weight_logits.dtype)
    weight_logits.scatter_add_(1, positions, lift)
