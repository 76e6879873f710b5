"""What `twofour bench engine mix` measures: the cells, their masks, and who uses which."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from maskgen.format.mask import Mask
from maskgen.format.two_four import PLACEMENTS


@dataclass(frozen=True)
class MixPlan:
    """What to measure.

    Attributes:
        counts: how many masks are resident, the base among them.
        zipf_counts: for which of these also a Zipf mix is measured.
        shares: of the groups that differ between a synthetic mask and the base, 0 to 1.
        prompt_tokens, output_tokens, concurrency: of a wave; its requests start together.
        repeats: waves of every arm in every cell; figures are their medians.
        cell_seconds: no further waves once a cell has taken so long.
        switches: how often the base is switched there and back.
        rules: how often the storage rule is measured.
        threads: OpenMP threads of every arm.
        kv_mib: memory for keys and values of every arm.
    """

    counts: tuple[int, ...] = (1, 2, 4, 8, 16)
    zipf_counts: tuple[int, ...] = (4, 16)
    shares: tuple[float, ...] = (0.003, 0.03, 0.2, 0.5)
    prompt_tokens: int = 8
    output_tokens: int = 32
    concurrency: int = 16
    repeats: int = 3
    cell_seconds: float = 8.0
    switches: int = 5
    rules: int = 5
    threads: int = 1
    kv_mib: int = 64

    def __post_init__(self) -> None:
        numbers = (self.prompt_tokens, self.output_tokens, self.concurrency, self.repeats)
        if min((*numbers, *self.counts, self.switches, self.rules, self.threads)) < 1:
            raise ValueError("counts, lengths, concurrency and repeats must be at least 1")
        if not self.shares or not all(0 < share <= 1 for share in self.shares):
            raise ValueError(f"changed shares must be above 0 and at most 1, got {self.shares}")


def synthetic_mask(base: Mask, share: float, seed: int) -> Mask:
    """`base` with each group changed, with this probability, to another placement.

    Placements are drawn evenly; the same seed gives the same mask.
    """
    rng = np.random.default_rng(seed)
    codes = {}
    for name, old in base.codes.items():
        changed = rng.random(old.shape, np.float32) < share
        new = old.copy()
        shift = rng.integers(1, len(PLACEMENTS), int(changed.sum()), np.uint8)
        new[changed] = (old[changed] + shift) % len(PLACEMENTS)
        codes[name] = new
    return replace(
        base, codes=codes, method="synthetic", domain=f"seed-{seed}", seed=seed, parent_digest=None
    )


def requests_per_mask(mix: str, masks: int, requests: int) -> list[int]:
    """How many of the requests use each mask, the base first: all sum to `requests`.

    `uniform` shares them evenly, `zipf` in proportion to 1 / rank; what cannot be divided goes by
    the largest remainder.
    """
    weights = [1 / rank if mix == "zipf" else 1.0 for rank in range(1, masks + 1)]
    exact = [requests * weight / sum(weights) for weight in weights]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(masks), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: requests - sum(counts)]:
        counts[i] += 1
    return counts
