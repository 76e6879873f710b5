"""The picture of the league: how learned masks improve with the tokens that they see."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskgen.plots import new_figure, save_figure


def plot_curves(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Perplexity of the hard masks on held-out text against tokens seen, a line a row.

    Rows without a `held_out_curve` of (tokens, nats a token) are left out. A curve's perplexity is
    of a few short windows, so it compares methods with each other and not with the table.

    Raises:
        ValueError: no row has a curve, or matplotlib is missing.
    """
    curves = {row["method"]: row["held_out_curve"] for row in rows if row.get("held_out_curve")}
    if not curves:
        raise ValueError("no row has a learning curve: measure a learned method first")
    figure = new_figure(width=7, height=4.5)
    axes = figure.add_subplot()
    for method, curve in curves.items():
        tokens, losses = zip(*curve, strict=True)
        axes.plot(tokens, [math.exp(loss) for loss in losses], marker="o", label=method)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_xlabel("tokens seen")
    axes.set_ylabel("perplexity, a few windows of Wikitext-2")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    save_figure(figure, path)
