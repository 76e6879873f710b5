"""Fuzzes what reads packed weights: random and mutated bytes must be refused or understood.

    python tests/fuzz/fuzz_unpack.py --seconds 60 [--seed N]

Each round takes packed weights of a random shape, damages them (bits, bytes, runs, length, another
shape, layout or block), and holds the reader to this: either `LayoutError`, or weights that pack to
the same bytes again and that every instruction set multiplies (int8 and int4: with equal bits). Run
it under the sanitizers (tests/engines/sanitize.sh) to catch reads and writes out of bounds too. On
a failure it prints the seed of the round.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections import Counter

import numpy as np

from engines.native import kernels, layout, lowbit
from engines.native.layout import BF16, Layout, LayoutError, PackedWeights
from tests.engines.native.lowbit_reference import LAYOUTS, random_weights


def fuzz_once(seed: int) -> str:
    """One round; gives how it ended.

    Raises:
        AssertionError: the reader accepted what it did not understand.
    """
    rng = np.random.default_rng(seed)
    shape = _shape(rng)
    data = _damaged(rng, _packed(rng, *shape))
    if rng.random() < 0.2:
        shape = _shape(rng)
    kind, n, k, block, minima = shape
    try:
        packed = PackedWeights(kind, n, k, data, block, minima)
    except LayoutError:
        return "wrong size"
    threads = int(rng.choice([1, 1, 1, 3]))
    try:
        again = _again_lowbit(packed, threads) if kind in LAYOUTS else _again_bf16(packed, threads)
    except LayoutError:
        return "malformed"
    assert np.array_equal(again, data), "unpacked weights do not pack to the same bytes"
    x = rng.standard_normal((3, k)).astype(np.float32)
    results = [
        kernels.linear(packed, x, threads=1, isa=isa).view(np.uint32)
        for isa in kernels.supported_isas()
    ]
    if kind in LAYOUTS:
        assert all(np.array_equal(results[0], result) for result in results), "other bits"
    return "accepted"


def _again_lowbit(packed: PackedWeights, threads: int) -> np.ndarray:
    weights = lowbit.unpack(packed, threads=threads)
    return lowbit.pack(packed.layout, weights, threads=1).data


def _again_bf16(packed: PackedWeights, threads: int) -> np.ndarray:
    dense, codes = layout.unpack(packed, threads=threads)
    # Packing writes -0.0 as 0.0; nothing else may differ.
    values = packed.data.view(np.uint16)
    values[values == 0x8000] = 0
    if codes is None:
        return layout.pack_dense(dense, threads=1).data
    return layout.pack_sparse(dense, codes, threads=1).data


def _shape(rng: np.random.Generator) -> tuple[Layout, int, int, int, bool]:
    kind = Layout(int(rng.integers(1, len(Layout) + 1)))
    n, k = int(rng.integers(1, 50)), 4 * int(rng.integers(1, 40))
    if kind not in LAYOUTS:
        return kind, n, k, 0, False
    block = int(rng.choice(lowbit.BLOCKS))
    return kind, n, k, block, lowbit.is_int4(kind) and rng.random() < 0.5


def _packed(
    rng: np.random.Generator, kind: Layout, n: int, k: int, block: int, minima: bool
) -> np.ndarray:
    if rng.random() < 0.2:
        return rng.integers(0, 256, layout.packed_bytes(kind, n, k, block, minima), dtype=np.uint8)
    if kind in LAYOUTS:
        seed = int(rng.integers(2**32))
        m = int(rng.choice([4, 8, 16, 32]))
        weights = random_weights(kind, n, k, block, minima=minima, m=m, seed=seed)
        return lowbit.pack(kind, weights, threads=1).data
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
