"""Learning on with the closest groups alone: the same masks, gradients and runs, less state."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskgen.format.pattern import Pattern
from maskgen.learning import relaxation
from maskgen.learning.active_groups import closest_groups
from maskgen.learning.batches import Batches
from maskgen.learning.distributed import World
from maskgen.learning.native import native_module
from maskgen.learning.relaxation import Softness
from maskgen.methods.maskllm import MaskLLM, MaskLLMConfig
from maskgen.methods.roi import RoI, RoIConfig
from maskgen.prune import PruneSettings, prune
from maskgen.torch_model import load_model
from tests.maskgen.learning_runs import losses, small_run
from tests.maskgen.routers import choose_first_experts
from tests.tiny_model import make_tiny_llama

ENTROPIC = {"top_n": "entropic", "scale": (0.01, 0.005), "margin": 0.05}
WORLD = World()
CASES: list[Any] = [
    pytest.param(MaskLLM, MaskLLMConfig, Pattern(2, 4), {}, id="maskllm"),
    pytest.param(RoI, RoIConfig, Pattern(2, 4), {}, id="roi"),
    pytest.param(RoI, RoIConfig, Pattern(16, 32), ENTROPIC, id="entropic 16:32"),
]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_tiny_llama(tmp_path_factory.mktemp("active") / "model")


def make_learner(model_dir, method, config, pattern, world=WORLD, **settings):
    model = load_model(model_dir, "bf16", "cpu")
    prior = prune(model_dir, None, PruneSettings("magnitude", pattern=pattern)).mask
    fixed = {"steps": 6, "sequence_length": 16, "batch_size": 2, "learning_rate": 0.05}
    chosen = config(**{**fixed, **settings})
    windows = np.random.default_rng(0).integers(0, 200, (6, 16), dtype=np.int32)
    batches = Batches(windows, chosen.batch_size, 0)
    return method().learner(model, prior.codes, chosen, batches, world, pattern)


def held_out(learner) -> float:
    return learner.evaluate([torch.arange(5, 37)[None]])


@pytest.mark.parametrize(("method", "config", "pattern", "settings"), CASES)
def test_settling_changes_no_mask_and_drops_the_state(model_dir, method, config, pattern, settings):
    learner = make_learner(
        model_dir, method, config, pattern, active_share=0.1, active_after=3, **settings
    )
    for step in range(3):
        learner.step(step)
    codes, loss, moved = learner.codes(), held_out(learner), learner.movement()
    whole = 4 * 4 * next(la for la in learner.layers).relaxation.planes / pattern.m
    assert learner.state_bytes()["total"] == whole / 2  # without moments
    learner._settle()
    assert held_out(learner) == loss
    assert learner.movement().changed == moved.changed > 0
    assert all(np.array_equal(learner.codes()[name], codes[name]) for name in codes)
    assert learner.state_bytes()["total"] == whole / 2  # the most that was needed
    learner._largest_state = {}
    assert learner.state_bytes()["total"] < 0.45 * whole  # rows of 64 groups in small layers
    before = learner.codes()
    for step in range(3, 6):
        learner.step(step)
    after = learner.codes()
    assert any(not np.array_equal(after[name], before[name]) for name in before)
    for layer in learner.layers:
        still = np.ones(before[layer.name].size, bool)
        still[layer.active.numbers] = False
        old, new = (codes[layer.name].ravel()[still] for codes in (before, after))
        assert np.array_equal(old, new)
    changed = sum(int((after[la.name] != la.prior.numpy()).sum()) for la in learner.layers)
    assert learner.movement().changed == pytest.approx(
        changed / sum(la.prior.numel() for la in learner.layers)
    )


@pytest.mark.parametrize(("method", "config", "pattern", "settings"), CASES)
def test_weights_and_gradients_of_active_groups_are_those_of_the_whole_layer(
    model_dir, monkeypatch, method, config, pattern, settings
):
    """Without noise, which depends on where a group lies."""
    monkeypatch.setattr(
        relaxation,
        "gumbels",
        lambda rows, planes, groups, key, device: torch.zeros(rows, planes, groups),
    )
    layers = [
        make_learner(model_dir, method, config, pattern, kernels="torch", **settings).layers[0]
        for _ in range(2)
    ]
    whole, settled = layers
    at, key = Softness(0.02, 0.7, 1e-3), whole.clock.key(whole.number)
    random = torch.Generator().manual_seed(3)
    groups = whole.prior.numel()
    numbers = torch.randperm(groups, generator=random)[: groups // 3].sort().values
    settled.settle(numbers)
    full = whole.masked_weight(whole.mask_logits.detach(), at, key)
    ours = settled.masked_weight(settled.mask_logits.detach(), at, key)
    m = pattern.m
    assert torch.equal(ours.view(-1, m)[numbers], full.view(-1, m)[numbers])
    rest = torch.ones(groups, dtype=torch.bool)
    rest[numbers] = False
    decided = whole._decided_weight()
    assert torch.equal(ours.view(-1, m)[rest], decided.view(-1, m)[rest])
    slope = torch.randn(whole.weight.shape, generator=random).bfloat16()
    whole.add_gradient(slope, at, key)
    settled.add_gradient(settled.active.gathered(slope), at, key)
    expected = settled.active.gathered_planes(whole.gradient())
    assert expected.abs().sum() > 0
    torch.testing.assert_close(settled.gradient(), expected, rtol=1e-4, atol=1e-5)


def test_until_groups_are_settled_a_step_is_adamws_first(model_dir):
    """Whose moments are the gradient and its square; a step of its own each time."""
    settings = {"learning_rate": 0.05, "final_learning_rate": 0.05, "weight_decay": 0.3}
    whole = make_learner(model_dir, MaskLLM, MaskLLMConfig, Pattern(2, 4), **settings)
    few = make_learner(
        model_dir, MaskLLM, MaskLLMConfig, Pattern(2, 4), active_share=0.2, **settings
    )
    whole.step(0)
    few.step(0)
    for mine, theirs in zip(few.layers, whole.layers, strict=True):
        torch.testing.assert_close(mine.mask_logits, theirs.mask_logits, rtol=1e-4, atol=1e-6)
    assert not few.optimiser()


def test_the_closest_groups_of_all_layers():
    margins = [torch.arange(128.0).flip(0).view(4, 32), torch.arange(50.0, 60.0)[None]]
    first, second = closest_groups(margins, 0.4)
    assert first.tolist() == list(range(64, 128))  # 0 to 52, and more to fill rows of kernels
    assert second.tolist() == [*range(10)]  # a layer of less than a row's groups stays whole
    first, second = closest_groups(margins, 1 / 138)
    assert first.tolist() == list(range(64, 128))
    assert second.tolist() == []


@pytest.mark.parametrize(("share", "stop"), [(0.3, 5), (0.01, 5), (0.3, 1)])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(model_dir, tmp_path, share, stop):
    prior = prune(model_dir, None, PruneSettings("magnitude")).mask
    settings = {"active_share": share, "active_after": 2, "checkpoint_every": 1}
    whole = small_run(model_dir, tmp_path / "whole", "maskllm", prior, steps=6, **settings)
    run = tmp_path / "parts"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batches, "__call__", _stop_at(stop, Batches.__call__))
        with pytest.raises(KeyboardInterrupt):
            small_run(model_dir, run, "maskllm", prior, steps=6, **settings)
    again = small_run(model_dir, run, "maskllm", prior, steps=6, resume=True, **settings)
    assert losses(run) == losses(tmp_path / "whole")
    assert again.mask.digest == whole.mask.digest


def _stop_at(call, batches):
    calls = iter(range(1000))

    def stopping(self, number):
        if next(calls) == call:
            raise KeyboardInterrupt
        return batches(self, number)

    return stopping


@pytest.mark.parametrize("share", [1.0, 0.1])
def test_an_expert_that_no_token_chose_has_no_moments(tmp_path, share):
    """Neither settling nor going on from a checkpoint needs them."""
    model_dir = make_tiny_llama(
        tmp_path / "model", architecture="mixtral", num_local_experts=4, num_experts_per_tok=1
    )
    choose_first_experts(model_dir)
    prior = prune(model_dir, None, PruneSettings("magnitude")).mask
    settings = {"active_share": share, "active_after": 2, "checkpoint_every": 1}
    whole = small_run(model_dir, tmp_path / "whole", "maskllm", prior, steps=4, **settings)
    for folder in sorted((tmp_path / "whole").glob("checkpoint-*"))[1:]:
        shutil.rmtree(folder)
    again = small_run(
        model_dir, tmp_path / "whole", "maskllm", prior, steps=4, resume=True, **settings
    )
    assert again.mask.digest == whole.mask.digest


def test_several_ranks_are_refused(model_dir):
    with pytest.raises(ValueError, match=r"active_share 0.5 needs a single process.*2 ranks"):
        make_learner(
            model_dir, MaskLLM, MaskLLMConfig, Pattern(2, 4),
            World(0, 2), active_share=0.5, micro_batches=2,
        )  # fmt: skip


def test_a_share_of_nothing_is_refused(model_dir, tmp_path):
    prior = prune(model_dir, None, PruneSettings("magnitude")).mask
    with pytest.raises(ValueError, match="active_share"):
        small_run(model_dir, tmp_path, "maskllm", prior, active_share=0)


@given(
    tokens=st.integers(1, 600),
    rows=st.integers(1, 9),
    groups=st.integers(1, 7),
    m=st.sampled_from([4, 8, 32]),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
    seed=st.integers(0, 2**16),
)
def test_native_sampled_products_are_entries_of_the_whole(tokens, rows, groups, m, dtype, seed):
    random = torch.Generator().manual_seed(seed)
    gradient = torch.randn(tokens, rows, generator=random).to(dtype)
    x = torch.randn(tokens, groups * m, generator=random).to(dtype)
    every = torch.randperm(rows * groups, generator=random)
    numbers = every[: max(1, len(every) // 3)].sort().values
    out = torch.ones(len(numbers), m)  # products are added to what is there
    native_module().sampled_products(gradient, x, numbers, out)
    whole = (gradient.double().T @ x.double()).view(-1, m)
    torch.testing.assert_close(out.double() - 1, whole[numbers], rtol=1e-4, atol=1e-3)


def test_native_sampled_products_refuse_what_does_not_fit():
    products = native_module().sampled_products
    gradient, x, out = torch.zeros(3, 2), torch.zeros(3, 8), torch.zeros(1, 4)
    for number in (-1, 4):
        with pytest.raises(ValueError, match="beyond the layer"):
            products(gradient, x, torch.tensor([number]), out)
    with pytest.raises(ValueError, match="tokens and type"):
        products(gradient, x.bfloat16(), torch.tensor([0]), out)
    with pytest.raises(ValueError, match="multiple of 4 must divide"):
        products(gradient, x, torch.tensor([0]), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="a row of products for every group"):
        products(gradient, x, torch.tensor([0, 1]), out)


@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_weight_gradients_of_active_groups(model_dir, kernels):
    settings = {"active_share": 0.1, "active_after": 1, "kernels": kernels}
    learner = make_learner(model_dir, MaskLLM, MaskLLMConfig, Pattern(2, 4), **settings)
    learner.step(0)
    learner.step(1)
    layer = learner.layers[0]
    random = torch.Generator().manual_seed(5)
    out, inputs = layer.weight.shape
    gradient = torch.randn(70, out, generator=random).bfloat16()
    x = torch.randn(70, inputs, generator=random).bfloat16()
    whole = layer.active.gathered(gradient.float().T @ x.float())
    found = layer.weight_gradient(gradient, x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), whole, rtol=2**-7, atol=0.05)
