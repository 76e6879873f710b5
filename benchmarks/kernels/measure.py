"""Measures the kernels: sparse, our dense, and oneDNN's dense, in turns on the same machine.

Each round runs every arm once on the next copy of the weights; the copies together exceed the
last-level cache, so weights come from memory as they do in a model. Figures are medians over the
rounds of a row. Run it through `twofour bench kernels`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import ml_dtypes
import numpy as np
import torch

from benchmarks.common.machine import OtherCpu
from engines.native import kernels, layout
from engines.native.layout import Layout, PackedWeights
from maskgen.format.pattern import TWO_FOUR
from maskgen.format.placements import keep_from_codes

SHAPES = (
    (4096, 4096),
    (14336, 4096),
    (4096, 14336),
    (8192, 2048),
    (576, 576),
    (192, 576),
    (1536, 576),
    (576, 1536),
)
TOKEN_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 512)

KEY = ("n", "k", "tokens", "threads", "isa")
"""What names a row."""

READ_BYTES = 256 << 20
"""What is read, slice by slice, to measure the read bandwidth."""
READ_SLICE = 32 << 20
_MIN_ROUNDS, _MAX_ROUNDS = 5, 400

Say = Callable[[str], object]
KernelCall = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class KernelRow:
    """One shape, number of tokens, number of threads and instruction set.

    Times are medians of one product, all packing of activations included. `sparse_gbps` is the
    packed bytes over the time; `read_gbps` what plain vector loads reach in the same rounds.
    """

    n: int
    k: int
    tokens: int
    threads: int
    isa: str
    kernel: str
    dense_kernel: str
    sparse_ms: float
    dense_own_ms: float
    dense_onednn_ms: float
    sparse_gbps: float
    dense_own_gbps: float
    read_gbps: float
    rounds: int
    other_cpu_share: float

    @property
    def speedup(self) -> float:
        """Against the better dense arm."""
        return min(self.dense_own_ms, self.dense_onednn_ms) / self.sparse_ms

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Layer:
    """Copies of one random layer for every arm, more than the last-level cache holds."""

    def __init__(self, n: int, k: int) -> None:
        rng = np.random.default_rng(0)
        self.n, self.k = n, k
        weights = (rng.standard_normal((n, k), dtype=np.float32) * 0.02).astype(layout.BF16)
        codes = rng.integers(0, 6, (n, k // 4), dtype=np.uint8)
        sparse, dense = layout.pack_sparse(weights, codes), layout.pack_dense(weights)
        self.copies = copy_count(sparse.data.size)
        self.sparse = copies(sparse, self.copies)
        self.dense = copies(dense, self.copies)
        tensor = torch.from_numpy(weights.view(np.uint16)).view(torch.bfloat16)
        self.onednn = [tensor.clone() for _ in range(self.copies)]
        self._kept = np.where(keep_from_codes(codes, TWO_FOUR), weights, ml_dtypes.bfloat16(0))

    def check(self, x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> None:
        """A fast wrong kernel is no result.

        Raises:
            RuntimeError: `y` is not x times the kept weights.
        """
        rows, tokens = slice(0, 64), slice(-4, None)
        exact = x[tokens].astype(np.float64) @ self._kept[rows].astype(np.float64).T
        if not np.allclose(y[tokens, rows].astype(np.float64), exact, rtol=0.02, atol=0.02):
            raise RuntimeError(f"the sparse kernel is wrong for {self.n} x {self.k}")


def measure(
    shapes: Sequence[tuple[int, int]],
    tokens: Sequence[int],
    threads: Sequence[int],
    isas: Sequence[str],
    *,
    seconds: float,
    progress: Say,
) -> list[KernelRow]:
    """All rows, shape by shape.

    Args:
        shapes: (n, k) of the layers; k a multiple of 4.
        tokens: numbers of tokens.
        threads: numbers of OpenMP threads.
        isas: instruction sets, each one that this machine has.
        seconds: time for one row, if that is enough for a few rounds.
        progress: gets a line per row.
    """
    buffer = layout.empty(READ_BYTES)
    buffer[:] = 1
    found = []
    with torch.inference_mode():
        for n, k in shapes:
            layer = Layer(n, k)
            for count in threads:
                torch.set_num_threads(count)
                for isa in isas:
                    for batch in tokens:
                        row = _measure_row(layer, batch, count, isa, buffer, seconds)
                        found.append(row)
                        progress(_line(row))
    return found


def measure_alternation(threads: int, seconds: float) -> list[dict[str, Any]]:
    """Whether torch and our kernels disturb each other when they take turns.

    Returns:
        Per number of tokens: each one's time alone and in turns (milliseconds), and the ratio.
    """
    layer = Layer(4096, 4096)
    torch.set_num_threads(threads)
    found = []
    with torch.inference_mode():
        for batch in (1, 32):
            arms = _arms(layer, batch, threads, None)
            ours, theirs = arms["sparse"], arms["onednn"]
            blocks: dict[str, list[float]] = {"ours": [], "theirs": [], "ours*": [], "theirs*": []}
            # Blocks in turns, so that a change of the machine's speed hits all alike.
            for _ in range(4):
                for name, times in rounds({"ours": ours}, seconds / 8).items():
                    blocks[name] += times[1:]
                for name, times in rounds({"theirs": theirs}, seconds / 8).items():
                    blocks[name] += times[1:]
                for name, times in rounds({"ours*": ours, "theirs*": theirs}, seconds / 4).items():
                    blocks[name] += times[1:]
            alone = {name: 1e3 * median(times) for name, times in blocks.items()}
            found.append(
                {
                    "tokens": batch,
                    "threads": threads,
                    "sparse_alone_ms": alone["ours"],
                    "sparse_alternating_ms": alone["ours*"],
                    "sparse_ratio": alone["ours*"] / alone["ours"],
                    "onednn_alone_ms": alone["theirs"],
                    "onednn_alternating_ms": alone["theirs*"],
                    "onednn_ratio": alone["theirs*"] / alone["theirs"],
                }
            )
    return found


def _measure_row(
    layer: Layer,
    batch: int,
    threads: int,
    isa: str,
    buffer: np.ndarray[Any, Any],
    seconds: float,
) -> KernelRow:
    arms = _arms(layer, batch, threads, isa)
    slices = [buffer[i : i + READ_SLICE] for i in range(0, READ_BYTES, READ_SLICE)]
    arms["read"] = lambda i: kernels.read(slices[i % len(slices)], threads=threads, isa=isa)
    with OtherCpu() as other:
        samples = rounds(arms, seconds)
    times = {name: median(values) for name, values in samples.items()}
    return KernelRow(
        n=layer.n,
        k=layer.k,
        tokens=batch,
        threads=threads,
        isa=isa,
        kernel=kernels.kernel_name(Layout.SPARSE24_BF16, batch, isa),
        dense_kernel=kernels.kernel_name(Layout.DENSE_BF16, batch, isa),
        sparse_ms=1e3 * times["sparse"],
        dense_own_ms=1e3 * times["dense"],
        dense_onednn_ms=1e3 * times["onednn"],
        sparse_gbps=layer.sparse[0].data.size / times["sparse"] / 1e9,
        dense_own_gbps=layer.dense[0].data.size / times["dense"] / 1e9,
        read_gbps=READ_SLICE / times["read"] / 1e9,
        rounds=len(samples["sparse"]),
        other_cpu_share=round(other.share, 4),
    )


def _arms(layer: Layer, batch: int, threads: int, isa: str | None) -> dict[str, KernelCall]:
    x = np.random.default_rng(1).standard_normal((batch, layer.k), dtype=np.float32)
    x = x.astype(layout.BF16)
    out = np.empty((batch, layer.n), layout.BF16)
    tensor = torch.from_numpy(x.view(np.uint16)).view(torch.bfloat16)

    def own(weights: list[PackedWeights]) -> KernelCall:
        return lambda i: kernels.linear(
            weights[i % layer.copies], x, out=out, threads=threads, isa=isa
        )

    own(layer.sparse)(0)
    layer.check(x, out)
    return {
        "sparse": own(layer.sparse),
        "dense": own(layer.dense),
        "onednn": lambda i: torch.nn.functional.linear(tensor, layer.onednn[i % layer.copies]),
    }


def rounds(arms: dict[str, KernelCall], seconds: float) -> dict[str, list[float]]:
    """Seconds of each call: every arm once per round, after one round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for arm in arms.values():
        arm(0)
    start = time.perf_counter()
    for i in range(1, _MAX_ROUNDS + 1):
        for name, arm in arms.items():
            before = time.perf_counter()
            arm(i)
            times[name].append(time.perf_counter() - before)
        if i >= _MIN_ROUNDS and time.perf_counter() - start > seconds:
            break
    return times


def copy_count(size: int) -> int:
    """How many copies of `size` bytes exceed the last-level cache twice."""
    return -(-2 * _cache_bytes() // size)


def copies(packed: PackedWeights, count: int | None = None) -> list[PackedWeights]:
    """Copies of a layer in memory of their own: `count`, or enough to exceed the cache twice."""
    size = packed.data.size
    count = count or copy_count(size)
    block = layout.empty(size * count).reshape(count, size)
    block[:] = packed.data
    return [replace(packed, data=data) for data in block]


def _cache_bytes() -> int:
    """The last-level cache of the first core; 64 MiB where the system does not say."""
    sizes = [
        int(path.read_text().strip().removesuffix("K")) * 1024
        for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    ]
    return max(sizes, default=64 << 20)


def _line(row: KernelRow) -> str:
    return (
        f"{row.n}x{row.k} tokens {row.tokens} threads {row.threads} {row.isa}: "
        f"sparse {row.sparse_ms:.3f} ms, dense {row.dense_own_ms:.3f}, "
        f"oneDNN {row.dense_onednn_ms:.3f}: {row.speedup:.2f}x"
    )
