"""Plots of a comparison, as SVG that stands inside a page."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.result_file import ResultRow
from loadtests.blocks import Block, LoadPoint
from loadtests.samples import RequestSample

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 9.6
_METRICS: Mapping[str, Callable[[RequestSample], Sequence[float | None]]] = {
    "TTFT, ms": lambda sample: [sample.ttft_s],
    "TPOT, ms": lambda sample: [sample.tpot_s],
    "ITL, ms": lambda sample: sample.gaps_s,
    "E2E, ms": lambda sample: [sample.e2e_s],
}


def load_chart(rows: Sequence[ResultRow], arms: Sequence[str]) -> str:
    """Throughput, TTFT and TPOT against load, a line per arm, p50 drawn through and p95 dashed.

    Args:
        rows: of one length of requests.
        arms: every arm of the comparison, which fixes colours.
    """
    panels = [
        ("generated tokens/s", [("tokens_per_s", "-")]),
        ("TTFT, ms (p95 dashed)", [("ttft_p50_ms", "-"), ("ttft_p95_ms", "--")]),
        ("TPOT, ms (p95 dashed)", [("tpot_p50_ms", "-"), ("tpot_p95_ms", "--")]),
    ]
    with _figure("load", 1, len(panels), 3.2) as (figure, axes):
        for panel, (title, curves) in zip(axes, panels, strict=True):
            for arm in arms:
                own = [row for row in rows if row["arm"] == arm]
                for field, style in curves:
                    _curve(panel, own, field, style, arm, arms)
            panel.set_title(title, fontsize=9)
            panel.set_ylim(bottom=0)
            _load_axis(panel, rows)
        _legend(figure, axes[0])
        return _svg(figure)


def standalone(chart: str) -> str:
    """A chart as the content of a file of its own."""
    return f'<?xml version="1.0" encoding="utf-8"?>\n{chart}\n'


def ratio_chart(rows: Sequence[ResultRow], arms: Sequence[str], reference: str) -> str:
    """Every arm's throughput over the reference's at each load, with both intervals.

    The thin bar is Student's t over repeats, the thick one the bootstrap. Empty without other arms.
    """
    others = [arm for arm in arms if arm != reference]
    if not others:
        return ""
    loads = sorted({_load(row) for row in rows})
    with _figure("ratio", 1, 1, 3.0) as (figure, (panel,)):
        for number, arm in enumerate(others):
            for row in (row for row in rows if row["arm"] == arm):
                offset = (number - (len(others) - 1) / 2) * 0.6 / len(others)
                _interval(panel, loads.index(_load(row)) + offset, row, _colour(arm, arms))
            panel.plot([], [], "o", color=_colour(arm, arms), label=arm)
        panel.axhline(1.0, color="black", linewidth=0.8)
        panel.set_xticks(range(len(loads)), [f"{load:g}" for load in loads])
        panel.set_xlim(-0.6, len(loads) - 0.4)
        panel.set_xlabel(_load_name(rows), fontsize=8)
        panel.set_title(f"tokens/s, times {reference}", fontsize=9)
        panel.grid(axis="y", alpha=0.3)
        _legend(figure, panel)
        return _svg(figure)


def distribution_chart(
    point: LoadPoint,
    blocks: Sequence[Block],
    samples: Mapping[str, Sequence[RequestSample]],
    arms: Sequence[str],
) -> str:
    """Share of requests (of gaps, for ITL) that took at most so long, all repeats together."""
    with _figure(str(point), 1, len(_METRICS), 2.8) as (figure, axes):
        for panel, (title, values_of) in zip(axes, _METRICS.items(), strict=True):
            for arm in arms:
                files = [b.samples_file for b in blocks if b.arm == arm and b.point == point]
                good = [s for file in files for s in samples[file] if s.ok and not s.warmup]
                values = [v * 1e3 for sample in good for v in values_of(sample) if v is not None]
                if values:
                    shares = np.arange(1, len(values) + 1) / len(values)
                    panel.step(
                        *_thinned(np.sort(values), shares),
                        where="post",
                        color=_colour(arm, arms),
                        label=arm,
                    )
            panel.set_title(title, fontsize=9)
            panel.set_ylim(0, 1.02)
            panel.grid(alpha=0.3)
        _legend(figure, axes[0])
        return _svg(figure)


@contextmanager
def _figure(
    salt: str, rows: int, columns: int, height: float
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure and its panels; `salt` keeps the ids of several drawings on one page apart."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    with mpl.rc_context({"svg.hashsalt": salt, "svg.fonttype": "path", "font.size": 8}):
        figure, axes = plt.subplots(
            rows, columns, figsize=(_WIDTH, height), squeeze=False, layout="constrained"
        )
        try:
            yield figure, list(axes.flat)
        finally:
            plt.close(figure)


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue().partition("<!DOCTYPE")[2].partition(">")[2].strip()


def _curve(
    panel: Axes, rows: Sequence[ResultRow], field: str, style: str, arm: str, arms: Sequence[str]
) -> None:
    points = sorted((_load(row), row[field]) for row in rows if row[field] is not None)
    if points:
        label = arm if style == "-" else None
        colour = _colour(arm, arms)
        panel.plot(*zip(*points, strict=True), style, marker=".", color=colour, label=label)


def _interval(panel: Axes, place: float, row: ResultRow, colour: str) -> None:
    for low, high, width in (
        ("ratio_low", "ratio_high", 1.2),
        ("bootstrap_low", "bootstrap_high", 4.0),
    ):
        if row[low] is not None:
            panel.vlines(place, row[low], row[high], color=colour, linewidth=width, alpha=0.6)
    panel.plot([place], [row["ratio"]], "o", color=colour, markersize=4)


def _load_axis(panel: Axes, rows: Sequence[ResultRow]) -> None:
    loads = sorted({_load(row) for row in rows})
    if len(loads) > 1:
        panel.set_xscale("log", base=2)
    panel.set_xticks(loads, [f"{load:g}" for load in loads])
    panel.minorticks_off()
    panel.set_xlabel(_load_name(rows), fontsize=8)
    panel.grid(alpha=0.3)


def _load(row: ResultRow) -> float:
    return LoadPoint(row["lengths"], row["concurrency"], row["rate"]).load


def _load_name(rows: Sequence[ResultRow]) -> str:
    if any(row["rate"] is not None for row in rows):
        return "requests/s, open loop"
    if any(row["concurrency"] is not None for row in rows):
        return "requests at a time"
    return "the trace"


def _legend(figure: Figure, panel: Axes) -> None:
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)


def _colour(arm: str, arms: Sequence[str]) -> str:
    return f"C{list(arms).index(arm)}"


def _thinned(
    values: NDArray[np.float64],
    shares: NDArray[np.float64],
    most: int = 1000,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most so many points of a curve, its ends among them: a page must stay small."""
    kept = np.unique(np.linspace(0, len(values) - 1, min(len(values), most)).astype(int))
    return values[kept], shares[kept]
