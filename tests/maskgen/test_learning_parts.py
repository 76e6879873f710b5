"""Loss and attention of learning runs against what torch and transformers compute."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from maskgen.learning.attention import ATTENTION_IMPLEMENTATION, use_short_attention
from maskgen.learning.loss import next_token_loss
from maskgen.learning.schedules import cosine, exponential, linear
from maskgen.torch_model import load_model
from tests.tiny_model import make_tiny_llama


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_loss_and_gradient_equal_the_plain_formula(share):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 50, (3, 17), generator=generator)
    logits = torch.randn(3, 17, 50, generator=generator, requires_grad=True)
    teacher = torch.randn(3, 17, 50, generator=generator)
    log_p = F.log_softmax(logits[:, :-1].flatten(0, 1), dim=-1)
    hard = F.nll_loss(log_p, ids[:, 1:].flatten())
    soft = F.kl_div(
        log_p, F.log_softmax(teacher[:, :-1].flatten(0, 1), -1), log_target=True,
        reduction="batchmean",
    )  # fmt: skip
    expected = (1 - share) * hard + share * soft
    (gradient,) = torch.autograd.grad(expected, logits, retain_graph=True)

    loss, reported = next_token_loss(logits, ids, teacher if share else None, share)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert reported == pytest.approx(hard.item(), rel=1e-5)
    (ours,) = torch.autograd.grad(loss / 2, logits)
    torch.testing.assert_close(ours, gradient / 2, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])
def test_short_attention_equals_transformers_attention(tmp_path: Path, architecture):
    directory = make_tiny_llama(tmp_path / "model", architecture=architecture)
    model = load_model(directory, "bf16", "cpu")
    ids = torch.randint(0, 200, (2, 33), generator=torch.Generator().manual_seed(1))
    expected = model(input_ids=ids, use_cache=False).logits.float()
    exact = load_model(directory, "fp32", "cpu")(input_ids=ids, use_cache=False).logits
    assert use_short_attention(model, 33) == f"{ATTENTION_IMPLEMENTATION} attention"
    assert model.config._attn_implementation == ATTENTION_IMPLEMENTATION
    ours = model(input_ids=ids, use_cache=False).logits.float()
    # Neither is exact in bfloat16; ours may be no further from fp32 than transformers' by much.
    assert (ours - exact).abs().mean() < 1.5 * (expected - exact).abs().mean()


@pytest.mark.parametrize(
    ("options", "dtype", "length", "reason"),
    [
        ({"architecture": "mistral", "sliding_window": 8}, "bf16", 33, "an attention window"),
        ({}, "bf16", 4096, "sequences of 4096 tokens are longer than 1024"),
        ({}, "fp32", 33, "weights are torch.float32 on cpu"),
        ({"architecture": "phi3"}, "bf16", 33, "phi3 models were not tried"),
    ],
)
def test_short_attention_says_why_it_is_not_used(tmp_path: Path, options, dtype, length, reason):
    model = load_model(make_tiny_llama(tmp_path / "model", **options), dtype, "cpu")
    before = model.config._attn_implementation
    said = use_short_attention(model, length)
    assert said.startswith(f"{before} attention, because ")
    assert reason in said
    assert model.config._attn_implementation == before


def test_schedules_start_and_end_where_they_should():
    for schedule in (linear, exponential, cosine):
        assert schedule(4.0, 0.05, 0.0) == pytest.approx(4.0)
        assert schedule(4.0, 0.05, 1.0) == pytest.approx(0.05)
        assert schedule(4.0, 0.05, 1.7) == pytest.approx(0.05)
        assert 0.05 < schedule(4.0, 0.05, 0.5) < 4.0
    assert linear(100.0, 500.0, 0.25) == 200.0
    assert exponential(1.0, 0.01, 0.5) == pytest.approx(0.1)
