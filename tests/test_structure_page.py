"""The example of docs/structure.md runs as it is written, on a tiny model and little text."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.page_example import enter_example, run_example

CALIBRATION = "--windows 2 --length 32"
SMALL = {
    "structure learn": f"{CALIBRATION} --multiple 8 --set steps=4 --set sequence_length=32"
    " --set held_out_windows=2",
    "structure inspect": "",
    "structure apply": "",
    "recover": "--steps 2 --sequence-length 32",
    "mask prune": CALIBRATION,
    "eval": "--window 64 --windows 2",
}


def test_the_example_makes_a_smaller_model_recovers_and_masks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter_example(tmp_path, monkeypatch)
    outputs = run_example("structure.md", SMALL)
    assert "% of the linears' weights; from" in outputs[0]
    assert "low rank modules: 14" in outputs[1]
    assert "a layer, base digest" in outputs[2]
    assert "recovered by tiny from 128 tokens" in outputs[3]
    assert "perplexity" in outputs[-1]
