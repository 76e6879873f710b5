"""What the kernels' rows say: the table with the targets beside it, and the roofline plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from benchmarks.kernels.measure import KernelRow
from maskgen.format.atomic_file import atomic_writer

PICTURE = "kernels-roofline.png"

_LARGE_BYTES = 16_000_000
_BANDWIDTH_TARGET = 0.9


def target(row: KernelRow) -> float | None:
    """Speed-up over the better dense arm that is aimed at, where one is; 2:4's limit is 64/36."""
    if row.isa != "avx512_bf16" or 2 * row.n * row.k < _LARGE_BYTES:
        return None
    return {1: 1.6, 8: 1.4, 32: 1.15, 128: 0.95, 512: 0.95}.get(row.tokens)


def misses(rows: Sequence[KernelRow]) -> list[str]:
    """One line for each row that stays below its target."""
    found = []
    for row in rows:
        where = f"{row.n}x{row.k}, {row.tokens} tokens, {row.threads} threads, {row.isa}"
        wanted = target(row)
        if wanted is not None and row.speedup < wanted:
            found.append(f"{where}: {row.speedup:.2f}x, aimed at {wanted}x")
        share = row.sparse_gbps / row.read_gbps
        if wanted is not None and row.tokens == 1 and share < _BANDWIDTH_TARGET:
            found.append(f"{where}: {share:.0%} of read bandwidth, aimed at 90 %")
        if row.isa == "avx2" and row.tokens == 1 and 2 * row.n * row.k >= _LARGE_BYTES:
            own = row.dense_own_ms / row.sparse_ms
            if own < 1.4:
                found.append(f"{where}: {own:.2f}x its own dense kernel, aimed at 1.4x")
    return found


def table(rows: Sequence[KernelRow]) -> Table:
    """The rows for people."""
    grid = Table(title="2:4 against dense: milliseconds of one product")
    for name in ("shape", "tokens", "threads", "isa", "sparse", "dense", "oneDNN"):
        grid.add_column(name, justify="right")
    for name in ("/ dense", "/ oneDNN", "of bandwidth", "target"):
        grid.add_column(name, justify="right")
    for row in rows:
        wanted = target(row)
        grid.add_row(
            f"{row.n}x{row.k}",
            str(row.tokens),
            str(row.threads),
            row.isa,
            f"{row.sparse_ms:.3f}",
            f"{row.dense_own_ms:.3f}",
            f"{row.dense_onednn_ms:.3f}",
            f"{row.dense_own_ms / row.sparse_ms:.2f}x",
            f"{row.dense_onednn_ms / row.sparse_ms:.2f}x",
            f"{row.sparse_gbps / row.read_gbps:.0%}",
            "" if wanted is None else f"{wanted}x",
        )
    return grid


def plot_roofline(rows: Sequence[KernelRow], path: Path) -> None:
    """Work per second against work per byte of weights and activations, for the best rows' shapes.

    Counts the dense product's operations for every arm, so that a higher point is a faster one. The
    slanted line is the measured read bandwidth, the level one the fastest dense product.

    Raises:
        ValueError: there is no row of a large layer to plot.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    threads = max(row.threads for row in rows)
    shown = [
        row
        for row in rows
        if row.threads == threads and row.isa == rows[0].isa and 2 * row.n * row.k >= _LARGE_BYTES
    ]
    if not shown:
        raise ValueError("--plot needs rows of a layer of at least 16 MB of dense weights")
    arms = {
        "sparse 2:4": ("sparse_ms", 36 / 32, "o"),
        "dense (own)": ("dense_own_ms", 2.0, "s"),
        "dense (oneDNN)": ("dense_onednn_ms", 2.0, "^"),
    }
    figure, axes = plt.subplots(figsize=(8, 5.5))
    peak = 0.0
    for label, (field, bytes_per_weight, marker) in arms.items():
        points = []
        for row in shown:
            work = 2.0 * row.tokens * row.n * row.k
            traffic = bytes_per_weight * row.n * row.k + 2.0 * row.tokens * (row.n + row.k)
            rate = work / getattr(row, field) / 1e6
            points.append((work / traffic, rate))
            if field != "sparse_ms":
                peak = max(peak, rate)
        axes.scatter(*zip(*points, strict=True), marker=marker, label=label, alpha=0.75)
    bandwidth = max(row.read_gbps for row in shown)
    intensity = [0.5, peak / bandwidth, 2000.0]
    axes.plot(intensity, [0.5 * bandwidth, peak, peak], "k--", lw=1, label="roof of dense")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="operations of the dense product per byte read or written",
        ylabel="operations of the dense product, 10^9 per second",
        title=f"{shown[0].isa}, {threads} threads, read bandwidth {bandwidth:.0f} GB/s",
    )
    axes.legend()
    axes.grid(alpha=0.3, which="both")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_writer(path) as file:
        figure.savefig(file, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
