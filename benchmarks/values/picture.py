"""The README's picture (`twofour bench picture`): quality, speed and bytes of every arm.

All of it is in docs/results/lowbit-quality.json; its speeds are brought up to those of
bench-lowbit.json first. An arm that another one beats in all three is drawn hollow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common.result_file import RESULTS, ResultRow, read_result
from benchmarks.values.quality import with_present_speeds
from maskgen.format.atomic_file import atomic_writer
from maskgen.format.json_file import write_json

NAME = "quality-speed.png"
RESULT = "lowbit-quality"


_COLOURS = ("tab:blue", "tab:grey", "tab:green", "tab:olive", "tab:red", "tab:purple")
_LEGEND = {"gguf": "ik_llama.cpp, GGUF types", "dense": "twofour, dense"}


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
    first = ["dense", "gguf", "2:4"]
    kinds = [*first, *sorted({p.kind for p in found.values()} - set(first))]
    colours = {kind: _COLOURS[at % len(_COLOURS)] for at, kind in enumerate(kinds)}
    for kind, colour in colours.items():
        left.scatter([], [], s=45, color=colour, label=_LEGEND.get(kind, f"twofour, {kind}"))
    for axes, field in ((left, "tokens_per_s"), (right, "weights_mib")):
        for label, point in found.items():
            colour = colours[point.kind]
            where = (getattr(point, field), point.perplexity)
            fill = "none" if label in beaten else colour
            axes.scatter(*where, s=45, facecolors=fill, edgecolors=colour)
    left.set_xlabel("generated tokens/s, one request (right is better)")
    right.set_xlabel("weights, MiB (left is better)")
    left.set_ylabel("perplexity, log scale (lower is better)")
    left.set_yscale("log")
    for axis in (left.yaxis.set_major_formatter, left.yaxis.set_minor_formatter):
        axis("{x:.0f}")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.margins(0.2, 0.6)
    figure.canvas.draw()  # settles where points lie on the screen
    for axes, field in ((left, "tokens_per_s"), (right, "weights_mib")):
        places = {n: (getattr(p, field), p.perplexity) for n, p in found.items()}
        on_screen = {n: axes.transData.transform(place) for n, place in places.items()}
        for label, offset in label_offsets(on_screen).items():
            axes.annotate(
                _short(label),
                places[label],
                xytext=offset,
                textcoords="offset pixels",
                ha="center",
                va="center",
                fontsize=8,
                arrowprops={"arrowstyle": "-", "color": "0.8", "shrinkA": 0, "shrinkB": 4},
            )
    figure.suptitle(f"{title}\nhollow: another arm is better in all three", fontsize=9)
    figure.legend(loc="lower center", ncols=len(kinds), fontsize=8)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    with atomic_writer(path) as file:
        figure.savefig(file, format="png", dpi=140)
    plt.close(figure)


def label_offsets(points: Mapping[str, tuple[float, float]]) -> dict[str, tuple[int, int]]:
    """Where labels stand, in pixels from their points, so that none covers another or a point.

    The nearest free place of some; the last one tried where all are taken.
    """
    boxes: list[tuple[float, ...]] = [(x, y, _POINT, _POINT) for x, y in points.values()]
    offsets = {}
    for label, (x, y) in points.items():
        width = _LETTER * len(_short(label)) / 2
        for offset in _OFFSETS:
            box = (x + offset[0], y + offset[1], width, _LINE / 2)
            if not any(_overlap(box, other) for other in boxes):
                break
        boxes.append(box)
        offsets[label] = offset
    return offsets


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return all(abs(one[i] - other[i]) < one[i + 2] + other[i + 2] for i in (0, 1))


def _short(label: str) -> str:
    """The legend says whose it is."""
    return label.rpartition(" ")[2]


_POINT, _LETTER, _LINE = 5, 7, 14  # half a point, a letter and a line, in pixels
_OFFSETS = [(dx, sign * dy) for dy in (16, 32, 48) for dx in (0, 24, -24) for sign in (1, -1)]


def draw_results() -> list[str]:
    """Draw docs/results/quality-speed.png; gives a line about every arm.

    Speeds that were measured anew since then take the old ones' place in lowbit-quality.json.

    Raises:
        PictureError: the result file lacks what the picture shows.
    """
    path = RESULTS / f"{RESULT}.json"
    result = read_result(path)
    result = {**result, "rows": with_present_speeds(result["rows"])}
    write_json(path, result, indent=1)
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
