"""Learning runs on a tiny random model: what is trained, killed, resumed, spread over ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from maskgen.format.mask_file import read_mask, write_mask
from maskgen.learning import gradient_learner, loop
from maskgen.learning.batches import Batches
from maskgen.learning.checkpoint import CheckpointError
from maskgen.learning.distributed import World
from maskgen.learning.loop import LearningStoppedError
from maskgen.learning.prior import add_placement_prior
from maskgen.methods.maskllm import MaskLLM, MaskLLMConfig
from maskgen.methods.roi import RoI, RoIConfig
from maskgen.torch_model import load_model
from tests.maskgen.learning_runs import log_lines, losses, magnitude_prior, small_run
from tests.tiny_model import make_tiny_llama

ROOT = Path(__file__).parents[2]
RUNS = Path(__file__).with_name("learning_runs.py")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_tiny_llama(tmp_path_factory.mktemp("learning") / "model")


@pytest.fixture(scope="module")
def prior(model_dir: Path):
    return magnitude_prior(model_dir)


def make_learner(model_dir, prior, method=MaskLLM, config=MaskLLMConfig, **settings):
    model = load_model(model_dir, "bf16", "cpu")
    chosen = config(**{"steps": 4, "sequence_length": 16, "batch_size": 2, **settings})
    windows = np.random.default_rng(0).integers(0, 200, (6, 16), dtype=np.int32)
    made = method().learner(
        model, prior.codes, chosen, Batches(windows, chosen.batch_size, 0), World()
    )
    return model, made


@pytest.mark.parametrize(("method", "config"), [(MaskLLM, MaskLLMConfig), (RoI, RoIConfig)])
def test_only_mask_logits_get_gradients_and_weights_stay(model_dir, prior, method, config):
    before = load_model(model_dir, "bf16", "cpu").state_dict()
    model, made = make_learner(model_dir, prior, method, config)
    made.step(0)
    for name, parameter in model.named_parameters():
        if name.endswith("mask_logits"):
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name
            assert not parameter.requires_grad, name
    for layer in made.layers:
        assert torch.equal(layer.weight, before[f"{layer.name}.weight"])
        assert not layer.weight.requires_grad


def test_prior_probability_at_the_papers_constants():
    """kappa 100, alpha 3, logits of standard deviation 0.01: 0.83 for the prior, before noise."""
    codes = torch.arange(6, dtype=torch.uint8).repeat(1000).view(1, -1)
    logits = torch.tensor([-0.01, 0.01]).repeat(18000).view(1, 6, 6000)
    moved = logits.clone()
    add_placement_prior(moved, codes, alpha=3.0)
    probabilities = torch.softmax(100.0 * (moved - logits), dim=1)
    prior = probabilities.gather(1, codes.long()[:, None])
    exact = np.exp(3) / (np.exp(3) + 4 + np.exp(-3))
    assert exact == pytest.approx(0.83, abs=0.005)
    torch.testing.assert_close(prior, torch.full_like(prior, exact), atol=1e-4, rtol=0)


def test_maskllm_starts_from_its_prior_and_other_seeds_from_other_logits(model_dir, prior):
    learners = [make_learner(model_dir, prior, alpha=10.0, seed=seed)[1] for seed in (0, 0, 1)]
    for one in learners:
        assert one.movement().changed == 0.0
    first, again, other = (one.learned() for one in learners)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("method", ["maskllm", "roi", "maskpro"])
def test_native_and_torch_runs_have_the_same_losses(model_dir, prior, tmp_path, method):
    for kernels in ("native", "torch"):
        small_run(
            model_dir, tmp_path / kernels, method, prior, kernels=kernels, dtype="fp32", steps=4
        )
    np.testing.assert_allclose(losses(tmp_path / "native"), losses(tmp_path / "torch"), rtol=1e-3)


@pytest.mark.parametrize("method", ["maskllm", "roi"])
def test_recomputed_activations_see_the_same_noise(model_dir, prior, tmp_path, method):
    results = [
        small_run(model_dir, tmp_path / str(on), method, prior, activation_checkpointing=on)
        for on in (False, True)
    ]
    assert losses(tmp_path / "False") == losses(tmp_path / "True")
    assert results[0].mask.digest == results[1].mask.digest


@pytest.mark.parametrize("at_once", [1, 2, 3])
@pytest.mark.parametrize("settings", [{"regularisation": 1e-3}, {"distillation": 0.5}])
def test_sequences_one_after_the_other_give_the_same_gradient(
    model_dir, prior, tmp_path, settings, at_once
):
    for name, together in (("whole", 0), ("parts", at_once)):
        small_run(
            model_dir, tmp_path / name, "maskllm", prior, dtype="fp32", steps=4,
            batch_size=3, micro_batches=2, sequences_at_once=together, **settings,
        )  # fmt: skip
    whole, parts = (log_lines(tmp_path / name) for name in ("whole", "parts"))
    for key in ("loss", "gradient_norm"):
        np.testing.assert_allclose(
            [line[key] for line in parts], [line[key] for line in whole], rtol=1e-4
        )


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("maskllm", {}),
        ("roi", {}),
        ("maskpro", {}),
        ("maskpro", {"refresh_every": 4, "debias_tracker": True, "learning_rate": 1e4}),
    ],
)
def test_a_run_interrupted_between_steps_ends_with_the_same_mask(
    model_dir, prior, tmp_path, method, settings
):
    whole = small_run(model_dir, tmp_path / "whole", method, prior, **settings)
    half = tmp_path / "half"

    class InterruptError(Exception):
        pass

    original = loop._Watch.check

    def stop_at_four(self, report, step, folder):
        if step == 4:
            raise InterruptError
        return original(self, report, step, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Watch, "check", stop_at_four)
        with pytest.raises(InterruptError):
            small_run(model_dir, half, method, prior, **settings)
    assert [p.name for p in half.glob("checkpoint-*")] == ["checkpoint-000002"]
    resumed = small_run(model_dir, half, method, prior, resume=True, **settings)
    assert resumed.mask.digest == whole.mask.digest
    assert losses(half) == losses(tmp_path / "whole")


def environment(name: str) -> dict[str, str]:
    return {**os.environ, "RUN_NAME": name, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def test_sigkill_and_resume_give_the_mask_of_an_uninterrupted_run(model_dir, prior, tmp_path):
    """Killed at whatever point comes, be it inside a step or while a checkpoint is written."""
    (tmp_path / "model").symlink_to(model_dir)
    write_mask(tmp_path / "prior.safetensors", prior)
    settings = {"steps": 60, "checkpoint_every": 2, "learning_rate": 1e-2}
    whole = small_run(model_dir, tmp_path / "whole", "maskllm", prior, **settings)
    process = subprocess.Popen(
        [sys.executable, str(RUNS), str(tmp_path), "maskllm", json.dumps(settings)],
        env=environment("killed"),
    )
    log = tmp_path / "killed" / "log.jsonl"
    while process.poll() is None and (not log.exists() or log.read_text().count("\n") < 11):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
    assert 1 < len(losses(tmp_path / "killed")) < 60
    resumed = small_run(model_dir, tmp_path / "killed", "maskllm", prior, resume=True, **settings)
    assert resumed.mask.digest == whole.mask.digest
    assert whole.mask.digest != prior.digest, "a run that changes nothing would prove nothing"
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_two_gloo_ranks_equal_one_rank_with_two_micro_batches(model_dir, prior, tmp_path):
    (tmp_path / "model").symlink_to(model_dir)
    write_mask(tmp_path / "prior.safetensors", prior)
    settings = {"steps": 6, "micro_batches": 2, "learning_rate": 1e-2, "dtype": "fp32"}
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        str(RUNS), str(tmp_path), "maskllm", json.dumps(settings),
    ]  # fmt: skip
    done = subprocess.run(
        command, env=environment("two"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    one = small_run(model_dir, tmp_path / "one", "maskllm", prior, **settings).mask
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)
    shards = [p.stat().st_size for p in (tmp_path / "two").glob("checkpoint-000006/optimiser-*")]
    (whole,) = [p.stat().st_size for p in (tmp_path / "one").glob("checkpoint-000006/optimiser-*")]
    assert len(shards) == 2
    assert max(shards) < 0.7 * whole, "each rank holds its share of the moments"
    two = read_mask(tmp_path / "two" / "mask.safetensors")
    different = sum(int((two.codes[n] != one.codes[n]).sum()) for n in one.codes)
    assert different <= 0.002 * sum(c.size for c in one.codes.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_run_and_names_the_checkpoint(
    model_dir, prior, tmp_path, monkeypatch, value
):
    original = gradient_learner.GradientLearner._micro_batch

    def poisoned(self, step, index):
        return value if step == 4 else original(self, step, index)

    monkeypatch.setattr(gradient_learner.GradientLearner, "_micro_batch", poisoned)
    with pytest.raises(LearningStoppedError, match=r"step 5.*checkpoint-000004"):
        small_run(model_dir, tmp_path, "maskllm", prior)


def test_a_diverging_loss_stops_the_run(model_dir, prior, tmp_path, monkeypatch):
    original = gradient_learner.GradientLearner._micro_batch
    monkeypatch.setattr(
        gradient_learner.GradientLearner,
        "_micro_batch",
        lambda self, step, index: original(self, step, index) + (0 if step < 3 else 50),
    )
    with pytest.raises(LearningStoppedError, match="rose"):
        small_run(model_dir, tmp_path, "maskllm", prior)


def test_another_runs_checkpoint_is_refused(model_dir, prior, tmp_path):
    small_run(model_dir, tmp_path, "maskllm", prior)
    with pytest.raises(ValueError, match="already holds"):
        small_run(model_dir, tmp_path, "maskllm", prior)
    with pytest.raises(CheckpointError, match=r"alpha was 3\.0 and is now 5\.0"):
        small_run(model_dir, tmp_path, "maskllm", prior, alpha=5.0, resume=True)


def test_unknown_and_impossible_settings_are_refused(model_dir, prior, tmp_path):
    with pytest.raises(ValueError, match="alfa"):
        small_run(model_dir, tmp_path, "maskllm", prior, alfa=1.0)
    with pytest.raises(ValueError, match="steps"):
        small_run(model_dir, tmp_path, "maskllm", prior, steps=0)
    with pytest.raises(ValueError, match="micro_batches"):
        small_run(model_dir, tmp_path, "maskpro", prior, micro_batches=2)
    with pytest.raises(ValueError, match=r"window of 1024 .*max_position_embeddings"):
        small_run(model_dir, tmp_path, "maskllm", prior, sequence_length=1024)


def test_batches_depend_on_seed_and_index_alone():
    windows = np.arange(5, dtype=np.int32)[:, None]
    batches = Batches(windows, 2, seed=3)
    forward = [batches(i).ravel().tolist() for i in range(10)]
    backward = [Batches(windows, 2, seed=3)(i).ravel().tolist() for i in reversed(range(10))]
    assert forward == backward[::-1]
    epochs = np.array(forward).ravel().reshape(4, 5)
    assert (np.sort(epochs, axis=1) == np.arange(5)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) > 1
    assert forward != [Batches(windows, 2, seed=4)(i).ravel().tolist() for i in range(10)]
