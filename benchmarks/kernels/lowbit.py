"""Measures the int8 and int4 kernels beside the bf16 ones, oneDNN and torch's int4 product.

As `benchmarks.kernels.measure`: every round runs every arm once, on copies of the weights that
exceed the last-level cache. A row is one pattern and type of values; all rows of a shape, number of
tokens and of threads come from the same rounds. Run it through `twofour bench kernels --lowbit`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.common.machine import OtherCpu
from benchmarks.common.table import TableSpec
from benchmarks.kernels import measure as bf16
from benchmarks.kernels.lowbit_page import lowbit_page
from engines.native import kernels, layout, lowbit
from engines.native.layout import Layout, PackedWeights

KEY = ("n", "k", "tokens", "threads", "isa", "values", "pattern", "block", "minima")
"""What names a row."""

LAYOUTS = {
    ("int8", "dense"): Layout.DENSE_INT8,
    ("int4", "dense"): Layout.DENSE_INT4,
    ("int8", "2:4"): Layout.SPARSE24_INT8,
    ("int4", "2:4"): Layout.SPARSE24_INT4,
    ("int8", "16:32"): Layout.BITMAP32_INT8,
    ("int4", "16:32"): Layout.BITMAP32_INT4,
}


@dataclass(frozen=True, slots=True)
class LowbitRow:
    """One shape, number of tokens and threads, instruction set, type of values and pattern.

    Times are medians of one product, all preparation of activations included. `dense_own_ms` is our
    dense kernel of the same values, `dense_onednn_ms` torch's bf16 product, `torch_int4pack_ms`
    torch's int4 one (groups of `torch_group` inputs), `sparse_bf16_ms` and `dense_bf16_ms` our own
    of bf16.
    """

    n: int
    k: int
    tokens: int
    threads: int
    isa: str
    values: str
    pattern: str
    block: int
    minima: bool
    kernel: str
    dense_kernel: str
    sparse_ms: float
    dense_own_ms: float
    dense_onednn_ms: float
    torch_int4pack_ms: float
    torch_group: int
    sparse_bf16_ms: float
    dense_bf16_ms: float
    sparse_gbps: float
    dense_own_gbps: float
    read_gbps: float
    rounds: int
    other_cpu_share: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class LowbitLayer:
    """Copies of one random layer in every layout, and torch's."""

    def __init__(self, n: int, k: int, block: int, minima: bool) -> None:
        self.bf16 = bf16.Layer(n, k)
        self.n, self.k, self.block, self.minima = n, k, block, minima
        self.weights = {name: self._weights(*name) for name in LAYOUTS}
        self.packed = {
            name: bf16.copies(lowbit.pack(LAYOUTS[name], weights))
            for name, weights in self.weights.items()
        }
        self.group = next(size for size in (128, 64, 32) if size <= block and k % size == 0)
        self.int4pack = self._int4pack()

    def _weights(self, values: str, pattern: str) -> lowbit.QuantisedWeights:
        rng = np.random.default_rng(0)
        n, k = self.n, self.k
        low, high = (-127, 128) if values == "int8" else (0, 16)
        shape = (n, lowbit.block_count(k, self.block))
        keep = np.zeros((n, k), np.bool_)
        if pattern != "dense":
            m = 4 if pattern == "2:4" else 32
            order = np.argsort(rng.random((n, k // m, m), dtype=np.float32), axis=2)
            np.put_along_axis(keep.reshape(n, k // m, m), order[:, :, : m // 2], True, axis=2)
        return lowbit.QuantisedWeights(
            rng.integers(low, high, (n, k), dtype=np.int8),
            np.full(shape, 2.0**-10, np.float16),
            self.block,
            rng.integers(-80, -40, shape, dtype=np.int8)
            if self.minima and values == "int4"
            else None,
            None if pattern == "dense" else lowbit.kept_words(keep),
        )

    def _int4pack(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        levels = torch.from_numpy(self.weights["int4", "dense"].values.astype(np.int32))
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels, 2)
        scales = torch.full((self.k // self.group, self.n, 2), 2.0**-7, dtype=torch.bfloat16)
        size = packed.numel() * packed.element_size()
        return [(packed.clone(), scales.clone()) for _ in range(bf16.copy_count(size))]

    def check(self, x: np.ndarray[Any, Any], threads: int, isa: str) -> None:
        """A fast wrong kernel is no result.

        Raises:
            RuntimeError: a product is not that of its weights and x.
        """
        exact_x = x.astype(np.float64)
        for (values, pattern), weights in self.weights.items():
            kind = LAYOUTS[values, pattern]
            y = kernels.linear(self.packed[values, pattern][0], x, threads=threads, isa=isa)
            rows = lowbit.QuantisedWeights(
                weights.values[:64],
                weights.scales[:64],
                self.block,
                None if weights.minima is None else weights.minima[:64],
                None if weights.kept is None else weights.kept[:64],
            )
            exact = exact_x @ lowbit.dequantise(kind, rows).astype(np.float64).T
            # Activations are rounded to 1/254 of their block's largest, at random.
            if np.abs(y[:, :64] - exact).max() > 0.02 * np.abs(exact).max():
                raise RuntimeError(f"the {kind.name} kernel is wrong for {self.n} x {self.k}")


def measure(
    shapes: Sequence[tuple[int, int]],
    tokens: Sequence[int],
    threads: Sequence[int],
    isas: Sequence[str],
    *,
    block: int,
    minima: bool,
    seconds: float,
    progress: bf16.Say,
) -> Iterator[LowbitRow]:
    """Rows of every shape, number of threads, instruction set and number of tokens.

    Args:
        shapes: (n, k) of the layers; k a multiple of 32, n of 16.
        tokens: numbers of tokens.
        threads: numbers of OpenMP threads.
        isas: instruction sets, each one that this machine has.
        block: inputs that share a scale.
        minima: whether int4 blocks have minima.
        seconds: time for one shape, number of tokens and of threads, if enough for a few rounds.
        progress: gets a line per row.
    """
    buffer = layout.empty(bf16.READ_BYTES)
    buffer[:] = 1
    with torch.inference_mode():
        for n, k in shapes:
            layer = LowbitLayer(n, k, block, minima)
            for count in threads:
                torch.set_num_threads(count)
                for isa in isas:
                    for batch in tokens:
                        for row in _measure_cell(layer, batch, count, isa, buffer, seconds):
                            progress(_line(row))
                            yield row


def _measure_cell(
    layer: LowbitLayer,
    batch: int,
    threads: int,
    isa: str,
    buffer: np.ndarray[Any, Any],
    seconds: float,
) -> list[LowbitRow]:
    arms = _arms(layer, batch, threads, isa)
    slices = [buffer[i : i + bf16.READ_SLICE] for i in range(0, buffer.size, bf16.READ_SLICE)]
    arms["read"] = lambda i: kernels.read(slices[i % len(slices)], threads=threads, isa=isa)
    with OtherCpu() as other:
        samples = bf16.rounds(arms, seconds)
    times = {name: median(taken) for name, taken in samples.items()}

    def gbps(name: tuple[str, str]) -> float:
        return layer.packed[name][0].data.size / times["/".join(name)] / 1e9

    return [
        LowbitRow(
            n=layer.n,
            k=layer.k,
            tokens=batch,
            threads=threads,
            isa=isa,
            values=values,
            pattern=pattern,
            block=layer.block,
            minima=layer.minima and values == "int4",
            kernel=kernels.kernel_name(kind, batch, isa),
            dense_kernel=kernels.kernel_name(LAYOUTS[values, "dense"], batch, isa),
            sparse_ms=1e3 * times[f"{values}/{pattern}"],
            dense_own_ms=1e3 * times[f"{values}/dense"],
            dense_onednn_ms=1e3 * times["onednn"],
            torch_int4pack_ms=1e3 * times["int4pack"],
            torch_group=layer.group,
            sparse_bf16_ms=1e3 * times["bf16 sparse"],
            dense_bf16_ms=1e3 * times["bf16 dense"],
            sparse_gbps=gbps((values, pattern)),
            dense_own_gbps=gbps((values, "dense")),
            read_gbps=bf16.READ_SLICE / times["read"] / 1e9,
            rounds=len(samples["read"]),
            other_cpu_share=round(other.share, 4),
        )
        for (values, pattern), kind in LAYOUTS.items()
        if pattern != "dense"
    ]


def _arms(layer: LowbitLayer, batch: int, threads: int, isa: str) -> dict[str, bf16.KernelCall]:
    x = np.random.default_rng(1).standard_normal((batch, layer.k), dtype=np.float32)
    x = x.astype(layout.BF16)
    out = np.empty((batch, layer.n), layout.BF16)
    tensor = torch.from_numpy(x.view(np.uint16)).view(torch.bfloat16)
    layer.check(x[:4], threads, isa)

    def own(weights: list[PackedWeights]) -> bf16.KernelCall:
        return lambda i: kernels.linear(
            weights[i % len(weights)], x, out=out, threads=threads, isa=isa
        )

    def int4pack(i: int) -> object:
        packed, scales = layer.int4pack[i % len(layer.int4pack)]
        return torch.ops.aten._weight_int4pack_mm_for_cpu(tensor, packed, layer.group, scales)

    arms: dict[str, bf16.KernelCall] = {
        "/".join(name): own(weights) for name, weights in layer.packed.items()
    }
    onednn = layer.bf16.onednn
    return arms | {
        "bf16 sparse": own(layer.bf16.sparse),
        "bf16 dense": own(layer.bf16.dense),
        "onednn": lambda i: torch.nn.functional.linear(tensor, onednn[i % len(onednn)]),
        "int4pack": int4pack,
    }


def _line(row: LowbitRow) -> str:
    return (
        f"{row.n}x{row.k} tokens {row.tokens} threads {row.threads} {row.isa} {row.pattern} "
        f"{row.values}: {row.sparse_ms:.3f} ms, dense {row.dense_own_ms:.3f}, "
        f"2:4 bf16 {row.sparse_bf16_ms:.3f}, int4pack {row.torch_int4pack_ms:.3f}"
    )


def misses(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One line for each row that stays below its target."""
    found = []
    for row in rows:
        where = (
            f"{row['n']}x{row['k']}, {row['tokens']} tokens, {row['threads']} threads, "
            f"{row['isa']}, {row['pattern']} {row['values']}"
        )
        if row["pattern"] == "2:4" and row["sparse_ms"] > row["sparse_bf16_ms"]:
            ratio = row["sparse_bf16_ms"] / row["sparse_ms"]
            found.append(f"{where}: {ratio:.2f}x 2:4 in bf16, aimed at never slower")
        if row["tokens"] > 1 or row["n"] * row["k"] < 4096 * 4096 or row["isa"] == "avx2":
            continue
        share, wanted = (
            row["sparse_gbps"] / row["read_gbps"],
            0.8 if row["pattern"] == "2:4" else 0.75,
        )
        if share < wanted:
            found.append(f"{where}: {share:.0%} of read bandwidth, aimed at {wanted:.0%}")
        if row["values"] == "int4" and row["torch_int4pack_ms"] < 2 * row["sparse_ms"]:
            ratio = row["torch_int4pack_ms"] / row["sparse_ms"]
            found.append(f"{where}: {ratio:.2f}x torch's int4pack, aimed at 2x")
    return found


TABLE = TableSpec("kernels-lowbit", KEY, lowbit_page, lambda rows: {"below_target": misses(rows)})
"""docs/results/kernels-lowbit.json."""
