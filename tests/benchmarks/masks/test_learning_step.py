"""Two builds of twofour learn beside each other."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.masks.learning_step import StepRun, parse_arm, run_arms, step_page
from maskgen.format.mask_file import write_mask
from tests.maskgen.learning_runs import magnitude_prior
from tests.tiny_model import make_tiny_llama

TWOFOUR = Path(sys.executable).with_name("twofour")


def test_both_arms_learn_and_the_page_compares_them(tmp_path):
    model = make_tiny_llama(tmp_path / "model")
    prior, text = tmp_path / "prior.safetensors", tmp_path / "text.txt"
    write_mask(prior, magnitude_prior(model))
    text.write_text("one two three four five six seven eight. " * 200)
    arms = [parse_arm(f"before={TWOFOUR}"), parse_arm(f"after={TWOFOUR},active_share=0.02")]
    settings = ["sequence_length=16", "batch_size=2", "active_after=1"]
    run = StepRun(str(model), prior, [str(text)], str(text), 3, settings)
    before, after = run_arms(arms, run)
    assert before["state_bytes_per_weight"] == 24
    assert after["state_bytes_per_weight"] == 12
    for row in (before, after):
        assert row["seconds"] > 0
        assert row["peak_rss_gb"] > 0.05
        assert row["steps"] == 3
        assert row["tokens_per_step"] == 32
    machine = {"cores": 2, "cpu": "a processor", "memory_gib": 1, "system": "Linux"}
    facts = {"date": "2026-01-01", "machine": machine, "machine_class": "avx2", "versions": {}}
    result = {**facts, "data_digests": {}, "command": "twofour bench", "rows": [before, after]}
    shown = step_page(result)
    assert "active_share=0.02" in shown
    assert "B (0.50) |" in shown
    bad = StepRun(str(model), prior, ["no-such-text.txt"], str(text), 3, settings)
    with pytest.raises(RuntimeError, match=r"before .*failed.*no-such-text"):
        run_arms(arms[:1], bad)


def test_arms_of_one_name_are_refused():
    arm = parse_arm(f"before={TWOFOUR}")
    with pytest.raises(ValueError, match="called before, before"):
        run_arms([arm, arm], StepRun("m", Path("p"), [], "t", 3, []))


@pytest.mark.parametrize(
    "spec",
    ["before", "=x", "before=/no/such/twofour", f"a/b={TWOFOUR}", f"a={TWOFOUR},", f"a={__file__}"],
)
def test_an_arm_needs_an_executable(spec):
    with pytest.raises(ValueError, match="names no executable"):
        parse_arm(spec)
