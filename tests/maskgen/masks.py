"""Random masks for the tests of this folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from maskgen.format.mask_file import Mask

SHAPES = {
    "model.layers.0.self_attn.q_proj": (12, 8),
    "model.layers.0.mlp.down_proj": (5, 20),
    "model.layers.1.mlp.down_proj": (7, 4),
}


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def random_mask(
    seed: int = 0, shapes: dict[str, tuple[int, int]] | None = None, **fields: object
) -> Mask:
    """A mask with random codes."""
    rng = np.random.default_rng(seed)
    codes = {
        name: rng.integers(0, 6, (n, k // 4), dtype=np.uint8)
        for name, (n, k) in (shapes or SHAPES).items()
    }
    labels: dict[str, object] = {
        "base_digest": sha("base"),
        "method": "wanda",
        "domain": "general",
        "calibration_digest": sha("text"),
        "seed": seed,
    }
    return Mask(codes, **{**labels, **fields})  # type: ignore[arg-type]


def changed_mask(mask: Mask, share: float, seed: int = 1) -> Mask:
    """`mask` with about this share of its groups drawn anew, unevenly over the codes."""
    rng = np.random.default_rng(seed)
    codes = {}
    for name, own in mask.codes.items():
        codes[name] = own.copy()
        places = rng.random(own.shape) < share
        codes[name][places] = rng.choice(
            6, size=int(places.sum()), p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.1]
        )
    return Mask(
        codes, mask.base_digest, "maskllm", "french", sha("french"), seed, pattern=mask.pattern
    )


def header_end(path: Path) -> int:
    """Where the tensors of a safetensors file begin."""
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")
