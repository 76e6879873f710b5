"""Masks that are learned in the test beat the prior that they start from, on held-out text."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from maskgen.format.mask import Mask
from maskgen.learn import LearnRequest, learn, parse_config
from maskgen.prune import PruneSettings, prune
from maskgen.torch_model import apply_to_module, load_model
from tests.maskgen.fact_model import LENGTH, held_out_loss, sentences, train_on_facts

METHODS = {
    "maskllm": {"steps": 60, "learning_rate": 1e-2, "batch_size": 8},
    "roi": {"steps": 60, "learning_rate": 1e-2, "batch_size": 8, "scale": (0.1, 0.002)},
    "maskpro": {"steps": 300, "batch_size": 16, "windows": 64, "strength": 4.0},
}


def masked_loss(model_dir: Path, mask: Mask | None) -> float:
    model = load_model(model_dir, "fp32", "cpu")
    if mask is not None:
        apply_to_module(model, mask)
    return held_out_loss(model_dir, model)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_on_facts(tmp_path_factory.mktemp("trained") / "model")


@pytest.fixture(scope="module")
def prior(trained: Path) -> Mask:
    return prune(trained, None, PruneSettings("magnitude")).mask


@pytest.mark.parametrize("method", METHODS)
def test_learned_masks_beat_their_magnitude_prior_on_held_out_text(
    trained, prior, tmp_path, method
):
    settings = {"sequence_length": LENGTH, "checkpoint_every": 1000, **METHODS[method]}
    config = parse_config(method, settings)
    request = LearnRequest(method, config, tmp_path / "run")
    result = learn(trained, sentences(0, 2000), prior, request, Console(quiet=True))
    dense = masked_loss(trained, None)
    before, after = masked_loss(trained, prior), masked_loss(trained, result.mask)
    assert dense < before - 0.03, "the prior must have something to lose"
    share = 0.1 if method == "maskpro" else 0.3
    assert after < before - share * (before - dense)
    assert 0 < result.changed < 0.8
