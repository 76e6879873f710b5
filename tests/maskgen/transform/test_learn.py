"""From a model and text to a transform."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from maskgen.format.digests import base_digest
from maskgen.method_lookup import UnknownMethodError
from maskgen.prune import PruneSettings, prune
from maskgen.selection import LayerChoice
from maskgen.texts.text_sets import TextSet
from maskgen.torch_model import TorchScorer, apply_to_module, load_model
from maskgen.transform.absorb import apply_transform
from maskgen.transform.config import TRANSFORM_METHODS, transform_config
from maskgen.transform.groups import TransformError
from maskgen.transform.learn import TransformResult, learn_transform
from maskgen.transform.request import TransformRequest
from tests.maskgen.transform.reference import logits
from tests.tiny_model import SAMPLE_TEXT, make_tiny_llama

TEXT = TextSet.of("sample", [SAMPLE_TEXT] * 4)
IDS = torch.arange(12) * 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model"))


def found(model: Path, method: str, seed: int = 0, **settings: object) -> TransformResult:
    config = transform_config(method, settings)
    request = TransformRequest(method, config, windows=4, length=64, seed=seed, dtype="fp32")
    return learn_transform(model, TEXT, request)


@pytest.mark.parametrize("score", ["magnitude", "wanda", "ria", "sparsegpt"])
def test_an_assigned_order_keeps_more_of_every_score(model: Path, score: str) -> None:
    dealt = found(model, "zigzag", score=score)
    assigned = found(model, "assignment", score=score)
    for result in (dealt, assigned):
        assert result.facts["retained_before"] == dealt.facts["retained_before"]
    assert assigned.facts["retained_after"] > dealt.facts["retained_before"]
    assert assigned.facts["retained_after"] > dealt.facts["retained_after"]
    calibrated = None if score == "magnitude" else TEXT.digest
    assert assigned.transform.calibration_digest == calibrated


def test_settings_and_seed_make_the_transform(model: Path, tmp_path: Path) -> None:
    first, again = (found(model, "assignment", rows=64) for _ in range(2))
    assert first.transform.digest == again.transform.digest
    assert found(model, "assignment", seed=1, rows=64).transform.digest != first.transform.digest
    assert first.transform.permutations.keys() == {
        "residual", "layers.0.mlp", "layers.0.value", "layers.1.mlp", "layers.1.value",
    }  # fmt: skip
    only = found(model, "assignment", groups="mlp").transform
    assert only.permutations.keys() == {"layers.0.mlp", "layers.1.mlp"}
    digest = apply_transform(model, only, tmp_path / "out")
    assert digest == base_digest(tmp_path / "out") == only.result_digest


def test_masks_lose_less_of_an_assigned_model(model: Path, tmp_path: Path) -> None:
    apply_transform(model, found(model, "assignment").transform, tmp_path / "new")
    before = logits(model, IDS)
    errors = []
    for directory in (model, tmp_path / "new"):
        assert (logits(directory, IDS) - before).abs().max() < 1e-9
        settings = PruneSettings("wanda", windows=4, length=64, dtype="fp32")
        sparse = load_model(directory, "fp32")
        apply_to_module(sparse, prune(directory, TEXT, settings).mask)
        errors.append(float((sparse(IDS[None]).logits[0] - before).square().mean()))
    assert errors[1] < errors[0]


def test_rotations_lower_the_entropy_of_scores(model: Path, tmp_path: Path) -> None:
    result = found(model, "rotation", steps=8)
    assert result.transform.rotations.keys() == {"layers.0.value", "layers.1.value"}
    assert not result.transform.permutations
    apply_transform(model, result.transform, tmp_path / "new")
    scorer = [TorchScorer(load_model(d, "fp32"))(IDS.tolist()) for d in (model, tmp_path / "new")]
    assert scorer[0] == pytest.approx(scorer[1], rel=0.01)


def test_what_cannot_be_found_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no method 'sort'; methods: zigzag"):
        transform_config("sort", {})
    with pytest.raises(UnknownMethodError, match="no method 'wander'"):
        found(model, "zigzag", score="wander")
    request = TransformRequest("rotation", transform_config("rotation", {}))
    with pytest.raises(ValueError, match="needs calibration text"):
        learn_transform(model, None, request)
    with pytest.raises(ValueError, match="ADMM decides on more than a score"):
        found(model, "zigzag", score="admm")
    with pytest.raises(ValueError, match="Extra inputs"):
        transform_config("zigzag", {"sweeps": 2})
    with pytest.raises(ValueError, match="residual"):
        transform_config("zigzag", {"groups": "query"})
    config = transform_config("zigzag", {"groups": "mlp", "score": "magnitude"})
    request = TransformRequest("zigzag", config, layers=LayerChoice(include=["*.q_proj"]))
    with pytest.raises(TransformError, match="no channels to change"):
        learn_transform(model, None, request)
    assert set(TRANSFORM_METHODS) >= {"zigzag", "assignment", "rotation"}
