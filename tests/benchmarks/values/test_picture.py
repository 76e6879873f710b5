"""The README's picture takes its points from the result file, and says which are beaten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.values import quality
from benchmarks.values.picture import (
    PictureError,
    Point,
    dominated,
    draw_panels,
    label_offsets,
    points,
)
from maskgen.format.json_file import write_json


def row(pattern: str, values: str, figures: tuple[float, float | None, float]) -> dict[str, Any]:
    perplexity, rate, weights = figures
    return {
        "pattern": pattern,
        "values": values,
        "wikitext2": perplexity,
        "tokens_per_s": rate,
        "weights_mib": weights,
    }


ROWS = [
    row("dense", "bf16", (19.0, 66.0, 256.0)),
    row("dense", "int4", (19.1, 119.0, 88.0)),
    row("2:4", "bf16", (42.7, 80.0, 168.0)),
    row("2:4", "int8", (43.0, 134.0, 95.0)),
    row("2:4", "int4", (44.0, None, 76.0)),
    {**row("dense", "q4_0", (24.0, 142.0, 87.5)), "file": "q4_0.gguf"},
]


def test_points_are_of_rows_with_a_speed(tmp_path: Path) -> None:
    found = points(ROWS)
    assert found["2:4 int8"] == Point(43.0, 134.0, 95.0, "2:4")
    assert found["ik_llama.cpp Q4_0"].kind == "gguf"
    assert len(found) == 5
    draw_panels(found, "a title", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_an_arm_is_beaten_by_one_that_is_as_good_in_everything() -> None:
    assert dominated(points(ROWS)) == {"2:4 bf16", "2:4 int8"}
    assert dominated({"a": Point(1, 1, 1, "dense"), "b": Point(1, 1, 1, "dense")}) == set()


@pytest.mark.parametrize("kept", ["dense", "2:4"])
def test_a_picture_without_both_kinds_is_refused(kept: str) -> None:
    with pytest.raises(PictureError, match="no dense or no sparse row with a speed"):
        points([r for r in ROWS if r["pattern"] == kept and "file" not in r])


def test_labels_of_neighbours_stand_apart() -> None:
    offsets = label_offsets({"a one": (0, 0), "a two": (4, 2), "a far": (300, 0)})
    assert offsets["a far"] == offsets["a one"] == (0, 16)
    assert offsets["a two"] != (0, 16)


def test_speeds_measured_anew_take_the_old_ones_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = {"prompt_tokens": 128, "output_tokens": 128, "concurrency": 1}
    other = {**cell, "concurrency": 8}
    speeds = [("sparse-int8", 127.0, cell), ("sparse-int8", 267.0, other), ("ik-q4_0", 141.0, cell)]
    rows = [{"arm": arm, "tokens_per_s": speed, **where} for arm, speed, where in speeds]
    write_json(tmp_path / "bench-lowbit.json", {"rows": rows})
    monkeypatch.setattr(quality, "RESULTS", tmp_path)
    found = [row["tokens_per_s"] for row in quality.with_present_speeds(ROWS)]
    assert found == [66.0, 119.0, 80.0, 127.0, None, 141.0]
