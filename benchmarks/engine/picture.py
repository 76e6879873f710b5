"""The README's picture (`twofour bench picture`).

Perplexity (docs/results/quality.json) against generated tokens per second and against the bytes of
the weights (docs/results/bench-engine.json), for every arm that both files have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.common.result_file import RESULTS, read_result
from maskgen.format.atomic_file import atomic_writer

LABELS = {
    "sparse": "twofour, 2:4 in bf16",
    "dense": "twofour, dense bf16",
    "llama.cpp-bf16": "llama.cpp, bf16",
    "llama.cpp-q8_0": "llama.cpp, Q8_0",
    "llama.cpp-q4_1": "llama.cpp, Q4_1",
}
COLOURS = {"sparse": "tab:green", "dense": "tab:blue"}
NAME = "quality-speed.png"


class PictureError(ValueError):
    """A result file lacks what the picture shows."""


def points(
    quality: list[dict[str, Any]], speed: list[dict[str, Any]], cell: tuple[int, int, int]
) -> dict[str, tuple[float, float, float]]:
    """Arm -> (perplexity, tokens per second, weights in MiB), of the arms that both lists have.

    Args:
        quality: rows of quality.json.
        speed: rows of bench-engine.json.
        cell: prompt tokens, output tokens, concurrency.

    Raises:
        PictureError: the sparse or the dense arm is missing.
    """
    perplexity = {row["arm"]: row["perplexity"] for row in quality}
    # bf16 weights are those of the dense arm, whoever multiplies them.
    if "dense" in perplexity:
        perplexity.setdefault("llama.cpp-bf16", perplexity["dense"])
    found = {}
    for row in speed:
        arm = row["arm"]
        here = (row["prompt_tokens"], row["output_tokens"], row["concurrency"])
        if here == cell and arm in LABELS and arm in perplexity:
            found[arm] = (perplexity[arm], row["tokens_per_s"], row["weights_mib"])
    if missing := {"sparse", "dense"} - found.keys():
        raise PictureError(
            f"no {' and no '.join(sorted(missing))} arm at {cell[0]}/{cell[1]} tokens, concurrency"
            f" {cell[2]}, in both result files; run twofour bench engine and"
            " twofour bench quality"
        )
    return found


def draw_panels(found: dict[str, tuple[float, float, float]], title: str, path: Path) -> None:
    """Two panels that share the perplexity axis."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True)
    for axes, which in ((left, 1), (right, 2)):
        ordered = sorted(found.items(), key=lambda item: item[1][which])
        for rank, (arm, values) in enumerate(ordered):
            axes.scatter(values[which], values[0], color=COLOURS.get(arm, "tab:grey"), s=45)
            axes.annotate(
                LABELS[arm],
                (values[which], values[0]),
                xytext=(0, 7 + 11 * (rank % 3)),  # neighbours at different heights
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
    left.set_xlabel("generated tokens/s, one request (right is better)")
    right.set_xlabel("weights, MiB (left is better)")
    left.set_ylabel("perplexity, log scale (lower is better)")
    left.set_yscale("log")
    for axis in (left.yaxis.set_major_formatter, left.yaxis.set_minor_formatter):
        axis("{x:.0f}")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.margins(0.25, 0.35)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    with atomic_writer(path) as file:
        figure.savefig(file, format="png", dpi=140)
    plt.close(figure)


def draw_results(cell: tuple[int, int, int]) -> list[str]:
    """Draw docs/results/quality-speed.png; gives a line about every arm.

    Args:
        cell: prompt tokens, output tokens, concurrency.

    Raises:
        PictureError: a result file lacks what the picture shows.
    """
    quality = read_result(RESULTS / "quality.json")
    speed = read_result(RESULTS / "bench-engine.json")
    found = points(quality["rows"], speed["rows"], cell)
    machine = speed["machine"]
    title = (
        f"SmolLM2-135M (dequantised from Q4_1), {cell[0]}/{cell[1]} tokens, {machine['cores']}"
        f" cores of {machine['cpu']}, {speed['date'][:10]}"
    )
    draw_panels(found, title, RESULTS / NAME)
    return [
        f"{arm:16} perplexity {perplexity:7.2f}  {rate:7.1f} tokens/s  {weights:6.1f} MiB"
        for arm, (perplexity, rate, weights) in found.items()
    ]
