"""Pictures of masks. Needs matplotlib (the `load` extra)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskgen.compare import LayerComparison, LayerSummary
from maskgen.format.atomic_file import atomic_writer
from maskgen.format.coverage import decoder_position
from maskgen.format.pattern import Pattern
from maskgen.format.placements import all_placements, placement_text

_MAX_DRAWN = 10_000  # decoder layers; names come from files


def plot_difference(path: Path, rows: Sequence[LayerComparison], title: str) -> None:
    """A grid of changed shares: decoder layers down, their linears across.

    Raises:
        ValueError: matplotlib is not installed, or cannot write this kind of file.
    """
    figure = new_figure(width=8, height=7)
    axes = figure.add_subplot()
    shares = {row.name: 100 * row.changed_share for row in rows}
    columns, grid = _grid(shares)
    image = axes.imshow(grid, aspect="auto", cmap="viridis", vmin=0)
    _label(axes, columns, title)
    figure.colorbar(image, label="changed groups, %")
    save_figure(figure, path)


def plot_placements(path: Path, pattern: Pattern, rows: Sequence[LayerSummary], title: str) -> None:
    """What is kept where, in every linear of every decoder layer.

    A grid for each placement where the pattern has few, or else one of all places in a group.

    Raises:
        ValueError: matplotlib is not installed, or cannot write this kind of file.
    """
    count = len(rows[0].placements)
    if not count:
        _plot_places(path, rows, title)
        return
    figure = new_figure(width=14, height=9)
    for code, placement in enumerate(all_placements(pattern)):
        axes = figure.add_subplot(2, -(-count // 2), code + 1)
        columns, grid = _grid({row.name: 100 * row.placements[code] for row in rows})
        image = axes.imshow(grid, aspect="auto", cmap="RdBu", vmin=0, vmax=200 / count)
        _label(axes, columns, placement_text(placement))
        figure.colorbar(image)
    figure.suptitle(f"{title}: share of each placement, % (even: {100 / count:.1f})")
    save_figure(figure, path)


def _plot_places(path: Path, rows: Sequence[LayerSummary], title: str) -> None:
    even = 100 * rows[0].density
    figure = new_figure(width=8, height=9)
    axes = figure.add_subplot()
    grid = 100 * np.array([row.places for row in rows])
    image = axes.imshow(grid, aspect="auto", cmap="RdBu", vmin=0, vmax=2 * even)
    axes.set(xlabel="place in the group", ylabel="layer of the mask", title=title)
    figure.colorbar(image, label=f"groups that keep it, % (even: {even:.1f})")
    save_figure(figure, path)


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure, inches; it needs no display.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(
            "pictures need matplotlib: pip install 'twofour[load]' (or leave out --plot)"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure; the suffix of `path` decides the kind.

    Raises:
        ValueError: an unknown suffix.
    """
    with atomic_writer(path) as file:
        figure.savefig(file, format=path.suffix.removeprefix("."), dpi=120)


def _grid(values: Mapping[str, float]) -> tuple[list[str], np.ndarray[Any, np.dtype[np.float64]]]:
    places = {name: (decoder_position(name) or ("", 0, name))[1:] for name in values}
    columns = list(dict.fromkeys(inner for _, inner in places.values()))
    last = max(index for index, _ in places.values())
    if last >= _MAX_DRAWN:
        raise ValueError(f"decoder layer {last} is too far down to draw; up to {_MAX_DRAWN} are")
    grid = np.full((1 + last, len(columns)), np.nan)
    for name, (index, inner) in places.items():
        grid[index, columns.index(inner)] = values[name]
    return columns, grid


def _label(axes: Any, columns: Sequence[str], title: str) -> None:
    axes.set_title(title)
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right", fontsize=8)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("decoder layer")
