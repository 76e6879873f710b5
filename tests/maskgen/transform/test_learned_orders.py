"""Orders learned by gradient: they get better, and a killed run goes on as if it had not been."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from maskgen.format.digests import base_digest
from maskgen.format.pattern import TWO_FOUR
from maskgen.format.tokenizer import ModelTokenizer
from maskgen.learning.batches import Batches
from maskgen.learning.checkpoint import CheckpointError
from maskgen.selection import select_layers
from maskgen.texts.text_sets import TextSet
from maskgen.texts.windows import TooLittleTextError, token_windows
from maskgen.torch_model import load_model
from maskgen.transform.absorb import apply_transform
from maskgen.transform.architectures import model_groups
from maskgen.transform.config import transform_config
from maskgen.transform.learn import TransformResult, learn_transform
from maskgen.transform.order_learner import OrderLearner, block_size
from maskgen.transform.order_losses import LOSSES, layer_outputs
from maskgen.transform.ordered_linear import OrderedLinear, Stage
from maskgen.transform.orders import find_orders, model_scores
from maskgen.transform.request import TransformRequest
from tests.maskgen.transform.reference import logits
from tests.tiny_model import SAMPLE_TEXT, make_tiny_llama

TEXT = TextSet.of("sample", [SAMPLE_TEXT] * 8)
SMALL = {
    "steps": 6,
    "sequence_length": 32,
    "batch_size": 2,
    "block": 16,
    "assign_every": 2,
    "checkpoint_every": 2,
    "held_out_every": 2,
    "held_out_windows": 3,
    "log_every": 3,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model"))


def learned(
    model: Path, folder: Path, *, resume: bool = False, **settings: object
) -> TransformResult:
    config = transform_config("learned", {**SMALL, **settings})
    request = TransformRequest(
        "learned", config, windows=4, length=64, dtype="fp32", folder=folder, resume=resume
    )
    return learn_transform(model, TEXT, request)


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_finds_an_order_that_is_no_worse_and_exact(
    model: Path, tmp_path: Path, loss: str
) -> None:
    result = learned(model, tmp_path / "run", loss=loss, learning_rate=0.3, epsilon=(1.0, 0.3))
    steps = log(tmp_path / "run")
    best = min(step["held_out"] for step in steps if "held_out" in step)
    assert best <= steps[0]["held_out"]
    assert steps[int(result.facts["best_step"])]["held_out"] == best
    assert any(step.get("changed", 0) > 0 for step in steps)
    assert max(step["row_error"] for step in steps if "row_error" in step) <= 1e-3
    digest = apply_transform(model, result.transform, tmp_path / "new")
    assert digest == base_digest(tmp_path / "new") == result.transform.result_digest
    ids = torch.arange(12) * 5
    assert (logits(tmp_path / "new", ids) - logits(model, ids)).abs().max() < 1e-9


def test_the_gradient_predicts_what_exchanges_do(model: Path) -> None:
    """Pairs of channels of different groups change places: what happens to the loss?"""
    settings = {**SMALL, "loss": "block", "sequence_length": 64, "batch_size": 4}
    config = transform_config("learned", settings)
    network = load_model(model, "fp32")
    groups, layers = model_groups(model).groups, select_layers(network).layers
    windows = token_windows(ModelTokenizer(model), TEXT.texts * 3, 64)
    scores = model_scores(network, "wanda", layers, windows[:8], lambda done, count, name: None)
    start = find_orders(groups, scores, config, TWO_FOUR, 0)
    learner = OrderLearner(network, groups, scores, start, TWO_FOUR, config, Batches(windows, 4, 0))
    ids = torch.from_numpy(windows[:4]).long()
    base = learner.loss(ids)
    torch.manual_seed(0)
    for name in ("residual", "layers.0.mlp", "layers.1.value"):
        slope, places = learner.slope(name), learner.places(name)
        expected, found = [], []
        for _ in range(24):
            block = int(torch.randint(len(places), ()))
            one, other = (int(p) for p in torch.randperm(places.shape[1])[:2])
            if one // 4 == other // 4:
                continue
            a, b = int(places[block, one]), int(places[block, other])
            moves = slope[block][[b, a], [one, other]] - slope[block][[a, b], [one, other]]
            expected.append(float(moves.sum()))
            exchanged = places.clone()
            exchanged[block, one], exchanged[block, other] = b, a
            learner.use(name, exchanged)
            found.append(learner.loss(ids) - base)
            learner.use(name, places)
        assert np.corrcoef(expected, found)[0, 1] > 0.6


def test_a_killed_run_goes_on_as_if_it_had_not_been(model: Path, tmp_path: Path) -> None:
    whole = learned(model, tmp_path / "whole", checkpoint_every=4)
    learned(model, tmp_path / "run", checkpoint_every=4)
    shutil.rmtree(tmp_path / "run" / "checkpoint-000006")  # as if killed after step 4
    again = learned(model, tmp_path / "run", checkpoint_every=4, resume=True)
    assert again.transform.digest == whole.transform.digest
    times = ("seconds", "steps_per_second", "eta_seconds", "iterations")
    first, second = (
        [{k: v for k, v in step.items() if k not in times} for step in log(tmp_path / name)]
        for name in ("whole", "run")
    )
    assert first == second
    with pytest.raises(CheckpointError, match="loss was 'amd' and is now 'block'"):
        learned(model, tmp_path / "run", checkpoint_every=4, resume=True, loss="block")


def test_the_block_loss_is_each_layers_own(model: Path) -> None:
    """Without masks nothing is lost; with them, the layers' relative errors."""
    network = load_model(model, "fp32")
    ids, stage = torch.arange(24).view(2, 12), Stage("dense", 1, torch.Generator())
    assert layer_outputs(network, ids, stage, 1.0) == 0
    assert not any(isinstance(module, OrderedLinear) for module in network.modules())


def test_blocks_divide_groups() -> None:
    assert [block_size(1536, 64, 4), block_size(576, 64, 4), block_size(64, 64, 4)] == [64, 64, 64]
    assert [block_size(40, 64, 4), block_size(40, 32, 8), block_size(12, 2, 4)] == [40, 8, 4]


def test_what_a_run_needs(model: Path, tmp_path: Path) -> None:
    config = transform_config("learned", SMALL)
    request = TransformRequest("learned", config, windows=4, length=64, dtype="fp32")
    with pytest.raises(ValueError, match="a folder for checkpoints"):
        learn_transform(model, TEXT, request)
    with pytest.raises(TooLittleTextError, match="would be set aside"):
        learned(model, tmp_path / "run", held_out_windows=99)
