"""What MaskPro's residual is measured against, and how much of it counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from maskgen.format.mask import Mask
from maskgen.learning.batches import Batches
from maskgen.learning.distributed import World
from maskgen.learning.policy import PolicyLearner
from maskgen.methods.maskpro import MaskPro, MaskProConfig
from maskgen.torch_model import load_model
from tests.maskgen.learning_runs import magnitude_prior
from tests.tiny_model import make_tiny_llama

DECAY = 0.5


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_tiny_llama(tmp_path_factory.mktemp("policy") / "model")


@pytest.fixture(scope="module")
def prior(model_dir: Path) -> Mask:
    return magnitude_prior(model_dir)


def make_learner(model_dir: Path, prior: Mask, **settings: object) -> PolicyLearner:
    config = MaskProConfig(
        **{
            "sequence_length": 16,
            "batch_size": 4,
            "strength": 1.0,
            "tracker_decay": DECAY,
            **settings,
        }
    )
    windows = np.random.default_rng(0).integers(0, 200, (6, 16), dtype=np.int32)
    model = load_model(model_dir, "fp32", "cpu")
    return MaskPro().learner(
        model, prior.codes, config, Batches(windows, config.batch_size, 0), World()
    )


def copied(learner: PolicyLearner) -> list[torch.Tensor]:
    return [logits.clone() for logits in learner.learned().values()]


def test_a_corrected_tracker_finds_the_first_sample_average(model_dir, prior):
    """The paper's starts at 0, so that what sampling costs counts against the first samples."""
    for debias in (False, True):
        learner = make_learner(model_dir, prior, debias_tracker=debias)
        before = copied(learner)
        residual = learner.step(0).extra["residual"]
        assert residual != 0
        assert float(learner.optimiser()["tracker"]) == pytest.approx((1 - DECAY) * residual)
        moved = [not torch.equal(a, b) for a, b in zip(before, copied(learner), strict=True)]
        assert any(moved) is not debias


def test_a_residual_counts_up_to_the_clip(model_dir, prior):
    free = make_learner(model_dir, prior).step(0).extra["residual"]
    learner = make_learner(model_dir, prior, clip=abs(free) / 4)
    assert learner.step(0).extra["residual"] == free, "the log keeps what was measured"
    taken = float(learner.optimiser()["tracker"]) / (1 - DECAY)
    assert taken == pytest.approx(np.sign(free) * abs(free) / 4)


def test_the_baseline_becomes_the_learned_mask(model_dir, prior):
    windows = [torch.from_numpy(w[None]).long() for w in _windows()]
    learner = make_learner(model_dir, prior, refresh_every=3, learning_rate=1e4)
    learner.step(0)
    first = learner.optimiser()["baseline"]
    learner.step(1)
    learner.step(2)
    assert learner.movement().changed > 0
    assert torch.equal(learner.optimiser()["baseline"], first)
    learned = torch.tensor([learner.evaluate([w]) for w in windows], dtype=torch.float64)
    residual = learner.step(3).extra["residual"]
    baseline, tracker = (learner.optimiser()[name] for name in ("baseline", "tracker"))
    torch.testing.assert_close(baseline, learned, atol=1e-4, rtol=0)
    assert not torch.equal(baseline, first)
    assert float(tracker) == pytest.approx((1 - DECAY) * residual), "the tracker starts afresh"


def _windows() -> np.ndarray:
    """The windows of `make_learner` in the order in which MaskPro keeps them."""
    windows = np.random.default_rng(0).integers(0, 200, (6, 16), dtype=np.int32)
    return Batches(windows, 4, 0).first(6).windows
