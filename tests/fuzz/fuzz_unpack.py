"""Fuzzes what reads packed weights: random and mutated bytes must be refused or understood.

    python tests/fuzz/fuzz_unpack.py --seconds 60 [--seed N]

Each round takes packed weights of a random shape, damages them (bits, bytes, runs, length, another
shape), and holds the reader to this: either `LayoutError`, or weights that pack to the same bytes
again and that every instruction set multiplies alike. Run it under the sanitizers
(tests/engines/sanitize.sh) to catch reads and writes out of bounds too. On a failure it prints the
seed of the round.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections import Counter

import numpy as np

from engines.native import kernels, layout
from engines.native.layout import BF16, Layout, LayoutError, PackedWeights


def fuzz_once(seed: int) -> str:
    """One round; gives how it ended.

    Raises:
        AssertionError: the reader accepted what it did not understand.
    """
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(1, 50)), 4 * int(rng.integers(1, 40))
    kind = Layout(int(rng.integers(1, 3)))
    data = _packed(rng, kind, n, k)
    if rng.random() < 0.2:
        n, k = int(rng.integers(1, 50)), 4 * int(rng.integers(1, 40))
    data = _damaged(rng, data)
    try:
        packed = PackedWeights(kind, n, k, data)
    except LayoutError:
        return "wrong size"
    try:
        dense, codes = layout.unpack(packed, threads=int(rng.choice([1, 1, 1, 3])))
    except LayoutError:
        return "malformed"
    again = (
        layout.pack_dense(dense, threads=1)
        if codes is None
        else layout.pack_sparse(dense, codes, threads=1)
    )
    # Packing writes -0.0 as 0.0; nothing else may differ.
    values = data.view(np.uint16).copy()
    values[values == 0x8000] = 0
    stored = again.data.view(np.uint16).copy()
    stored[stored == 0x8000] = 0
    assert np.array_equal(values, stored), "unpacked weights do not pack to the same bytes"
    x = rng.standard_normal((3, k)).astype(np.float32)
    for isa in kernels.supported_isas():
        kernels.linear(packed, x, threads=1, isa=isa)
    return "accepted"


def _packed(rng: np.random.Generator, kind: Layout, n: int, k: int) -> np.ndarray:
    if rng.random() < 0.2:
        return rng.integers(0, 256, layout.packed_bytes(kind, n, k), dtype=np.uint8)
    weights = rng.standard_normal((n, k)).astype(BF16)
    if kind is Layout.DENSE_BF16:
        return layout.pack_dense(weights, threads=1).data
    codes = rng.integers(0, 6, (n, k // 4), dtype=np.uint8)
    return layout.pack_sparse(weights, codes, threads=1).data


def _damaged(rng: np.random.Generator, data: np.ndarray) -> np.ndarray:
    for _ in range(int(rng.integers(0, 4))):
        at = int(rng.integers(data.size))
        match int(rng.integers(4)):
            case 0:
                data[at] ^= 1 << int(rng.integers(8))
            case 1:
                data[at] = rng.integers(256)
            case 2:
                data[at : at + 64] = rng.integers(256)
            case _:
                data = data[: at + 1].copy() if rng.random() < 0.3 else data
    return data


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, help="run this one round only")
    options = parser.parse_args()
    if options.seed is not None:
        sys.stdout.write(fuzz_once(options.seed) + "\n")
        return 0
    endings: Counter[str] = Counter()
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        seed = secrets.randbits(32)
        try:
            endings[fuzz_once(seed)] += 1
        except Exception:
            sys.stderr.write(f"failed: --seed {seed}\n")
            raise
    sys.stdout.write(f"{sum(endings.values())} rounds: {dict(endings)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
