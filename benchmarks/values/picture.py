"""The README's picture (`twofour bench picture`): quality, speed and bytes of every arm.

All of it is in docs/results/lowbit-quality.json, whose speeds are those of bench-lowbit.json. An
arm that another one beats in all three is drawn hollow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common.result_file import RESULTS, ResultRow, read_result
from maskgen.format.atomic_file import atomic_writer

NAME = "quality-speed.png"
RESULT = "lowbit-quality"


class PictureError(ValueError):
    """A result file lacks what the picture shows."""


@dataclass(frozen=True, slots=True)
class Point:
    """One arm.

    Attributes:
        perplexity: on Wikitext-2.
        tokens_per_s: generated, one request.
        weights_mib: bytes of the weights.
        kind: `2:4`, `dense`, ..., or `gguf` for another program's file.
    """

    perplexity: float
    tokens_per_s: float
    weights_mib: float
    kind: str

    def beats(self, other: Point) -> bool:
        """Whether it is at least as good in all three, and better in one."""
        own = (self.perplexity, -self.tokens_per_s, self.weights_mib)
        theirs = (other.perplexity, -other.tokens_per_s, other.weights_mib)
        return own != theirs and all(a <= b for a, b in zip(own, theirs, strict=True))


def points(rows: Sequence[ResultRow]) -> dict[str, Point]:
    """Label -> point, of the rows whose speed was measured.

    Raises:
        PictureError: none of a pattern, or none dense, was.
    """
    found = {}
    for row in rows:
        if row["tokens_per_s"] is None:
            continue
        kind = "gguf" if row.get("file") else row["pattern"]
        name = f"ik_llama.cpp {row['values'].upper()}" if row.get("file") else row["values"]
        label = name if row.get("file") else f"{row['pattern']} {name}"
        found[label] = Point(row["wikitext2"], row["tokens_per_s"], row["weights_mib"], kind)
    kinds = {point.kind for point in found.values()}
    if "dense" not in kinds or not kinds - {"dense", "gguf"}:
        raise PictureError(
            f"{RESULT}.json has no dense or no sparse row with a speed: run twofour bench engine"
            f" speed and twofour bench values"
        )
    return found


def dominated(found: Mapping[str, Point]) -> set[str]:
    """Labels of the points that another one beats."""
    return {
        label
        for label, point in found.items()
        if any(other.beats(point) for other in found.values())
    }


def draw_panels(found: Mapping[str, Point], title: str, path: Path) -> None:
    """Two panels that share the perplexity axis."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.6), sharey=True)
    beaten = dominated(found)
    kinds = ["dense", "gguf", *sorted({p.kind for p in found.values()} - {"dense", "gguf"})]
    colours = dict(zip(kinds, ("tab:blue", "tab:grey", "tab:green", "tab:olive"), strict=False))
    for axes, field in ((left, "tokens_per_s"), (right, "weights_mib")):
        for label, point in found.items():
            colour = colours[point.kind]
            where = (getattr(point, field), point.perplexity)
            fill = "none" if label in beaten else colour
            axes.scatter(*where, s=45, facecolors=fill, edgecolors=colour)
        for label, height in _heights(found, field).items():
            point = found[label]
            axes.annotate(
                label,
                (getattr(point, field), point.perplexity),
                xytext=(0, height),
                textcoords="offset points",
                ha="center",
                va="center",
                fontsize=8,
                arrowprops={"arrowstyle": "-", "color": "0.8", "shrinkA": 0, "shrinkB": 4},
            )
    left.set_xlabel("generated tokens/s, one request (right is better)")
    right.set_xlabel("weights, MiB (left is better)")
    left.set_ylabel("perplexity, log scale (lower is better)")
    left.set_yscale("log")
    for axis in (left.yaxis.set_major_formatter, left.yaxis.set_minor_formatter):
        axis("{x:.0f}")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.margins(0.2, 0.6)
    figure.suptitle(f"{title}\nhollow: another arm is better in all three", fontsize=9)
    figure.tight_layout()
    with atomic_writer(path) as file:
        figure.savefig(file, format="png", dpi=140)
    plt.close(figure)


def _heights(found: Mapping[str, Point], field: str) -> dict[str, int]:
    """How far above or below its point each label stands: neighbours at different heights."""
    heights = {}
    for above in (True, False):
        middle = (
            max(p.perplexity for p in found.values()) * min(p.perplexity for p in found.values())
        ) ** 0.5
        own = {n: p for n, p in found.items() if (p.perplexity > middle) == above}
        for rank, label in enumerate(sorted(own, key=lambda n: getattr(own[n], field))):
            height = 14 + 13 * (rank % 4)
            heights[label] = height if above else -height
    return heights


def draw_results() -> list[str]:
    """Draw docs/results/quality-speed.png; gives a line about every arm.

    Raises:
        PictureError: the result file lacks what the picture shows.
    """
    result = read_result(RESULTS / f"{RESULT}.json")
    found = points(result["rows"])
    machine = result["machine"]
    title = (
        f"SmolLM2-135M (dequantised from Q4_1), 128/128 tokens, {machine['cores']}"
        f" cores of {machine['cpu']}, {result['date'][:10]}"
    )
    draw_panels(found, title, RESULTS / NAME)
    beaten = dominated(found)
    return [
        f"{label:22} perplexity {point.perplexity:7.2f}  {point.tokens_per_s:7.1f} tokens/s "
        f" {point.weights_mib:6.1f} MiB{'  beaten in all three' if label in beaten else ''}"
        for label, point in found.items()
    ]
