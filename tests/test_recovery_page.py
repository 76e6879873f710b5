"""The example of docs/recovery.md runs as it is written, on a tiny model and little text."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.page_example import enter_example, run_example, run_line

SMALL = {
    "recover": "--steps 2 --sequence-length 16 --held-out-every 1 --held-out-windows 2"
    " --set windows=2 --set window_length=16",
    "eval": "--window 64 --windows 2",
}


def test_the_example_recovers_a_model_and_measures_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter_example(tmp_path, monkeypatch)
    run_line("mask prune --model tiny --method magnitude --out general.safetensors")
    recovered, measured = run_example("recovery.md", SMALL)
    assert "recovered for general.safetensors" in recovered
    assert "perplexity" in measured
    assert Path("smollm2-single/recovery.json").is_file()
