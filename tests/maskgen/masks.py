"""Random masks for the tests of this folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from maskgen.format.mask import Mask
from maskgen.format.pattern import TWO_FOUR, Pattern
from maskgen.format.placements import code_dtype

SHAPES = {
    "model.layers.0.self_attn.q_proj": (12, 8),
    "model.layers.0.mlp.down_proj": (5, 20),
    "model.layers.1.mlp.down_proj": (7, 4),
}


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def random_mask(
    seed: int = 0,
    shapes: dict[str, tuple[int, int]] | None = None,
    pattern: Pattern = TWO_FOUR,
    **fields: object,
) -> Mask:
    """A mask with random codes; without shapes, of layers that are wide enough for the pattern."""
    rng = np.random.default_rng(seed)
    if shapes is None:
        shapes = {name: (n, k // 4 * pattern.m) for name, (n, k) in SHAPES.items()}
    codes = {
        name: rng.integers(0, pattern.placements, (n, k // pattern.m), dtype=code_dtype(pattern))
        for name, (n, k) in shapes.items()
    }
    labels: dict[str, object] = {
        "base_digest": sha("base"),
        "method": "wanda",
        "domain": "general",
        "calibration_digest": sha("text"),
        "seed": seed,
        "pattern": pattern,
    }
    return Mask(codes, **{**labels, **fields})  # type: ignore[arg-type]


def changed_mask(mask: Mask, share: float, seed: int = 1) -> Mask:
    """`mask` with about this share of its groups drawn anew, unevenly over the codes of 2:4."""
    rng = np.random.default_rng(seed)
    uneven = [0.4, 0.2, 0.1, 0.1, 0.1, 0.1] if mask.pattern == TWO_FOUR else None
    codes = {}
    for name, own in mask.codes.items():
        codes[name] = own.copy()
        places = rng.random(own.shape) < share
        codes[name][places] = rng.choice(mask.pattern.placements, int(places.sum()), p=uneven)
    return Mask(
        codes, mask.base_digest, "maskllm", "french", sha("french"), seed, pattern=mask.pattern
    )


def header_end(path: Path) -> int:
    """Where the tensors of a safetensors file begin."""
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")
