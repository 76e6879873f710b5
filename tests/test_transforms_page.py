"""The example of docs/transforms.md runs as it is written, on a tiny model and little text."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.page_example import enter_example, run_example

CALIBRATION = "--windows 2 --length 32"
SMALL = {
    "transform learn": CALIBRATION,
    "transform inspect": "",
    "mask prune": CALIBRATION,
    "eval": "--window 64 --windows 2",
}


def test_the_example_finds_a_basis_and_measures_a_mask_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter_example(tmp_path, monkeypatch)
    outputs = run_example("transforms.md", SMALL)
    assert "rotation, entropy before" in outputs[0]
    assert "rotation + assignment, retained before" in outputs[1]
    assert "perplexity" in outputs[-1]
