"""The loss of learning runs against the plain formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from maskgen.learning.loss import _torch_losses, next_token_loss
from maskgen.learning.native import native_module


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


def plain_losses(logits, targets, teacher, share, scale):
    """Text loss, divergence and the mix's gradient in fp64."""
    x = logits.double().requires_grad_(True)
    counted = targets >= 0
    log_p = F.log_softmax(x, dim=-1)[counted]
    text = F.nll_loss(log_p, targets[counted], reduction="sum")
    divergence = torch.zeros((), dtype=torch.float64)
    if teacher is not None:
        log_q = F.log_softmax(teacher.double(), dim=-1)[counted]
        divergence = F.kl_div(log_p, log_q, log_target=True, reduction="sum")
    mix = scale * ((1 - share) * text + share * divergence)
    return text.item(), divergence.item(), torch.autograd.grad(mix, x)[0]


@given(
    vocabulary=st.integers(1, 70),
    positions=st.integers(1, 5),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
    taught=st.booleans(),
    spread=st.sampled_from([0.1, 3.0, 60.0]),
    seed=st.integers(0, 2**16),
)
def test_native_losses_equal_the_plain_formula(vocabulary, positions, dtype, taught, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    shape = positions, vocabulary
    logits = (spread * torch.randn(shape, generator=generator)).to(dtype)
    teacher = (spread * torch.randn(shape, generator=generator)).to(dtype) if taught else None
    targets = torch.randint(-1, vocabulary, (positions,), generator=generator)
    targets[0] = vocabulary - 1
    share = 0.3 if taught else 0.0
    text, divergence, expected = plain_losses(logits, targets, teacher, share, 0.7)
    gradient = torch.full_like(logits, 5.0)
    found = native_module().next_token_loss(logits, targets, teacher, share, 0.7, gradient)
    assert found == pytest.approx((text, divergence), rel=1e-5, abs=1e-5)
    tolerance = 2**-8 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(gradient.double(), expected, rtol=tolerance, atol=1e-6)
    # Without a gradient the losses are the same, and torch's functions agree.
    assert native_module().next_token_loss(logits, targets, teacher, share, 0.7, None) == found
    written = torch.empty_like(logits)
    others = _torch_losses(logits, targets, teacher, share, 0.7, written)
    assert others == pytest.approx(found, rel=1e-5, abs=1e-5)
    torch.testing.assert_close(written, gradient, rtol=tolerance, atol=1e-6)


def test_native_losses_of_what_is_not_a_number_are_none():
    targets = torch.tensor([1, 1])
    for bad in (float("nan"), float("inf")):
        logits = torch.zeros(2, 33)
        logits[1, 32] = bad
        text, _ = native_module().next_token_loss(logits, targets, None, 0.0, 1.0, None)
        assert text != text


def test_native_losses_refuse_what_does_not_fit():
    logits, targets = torch.zeros(2, 5), torch.tensor([0, 4])
    loss = native_module().next_token_loss
    with pytest.raises(ValueError, match="beyond the vocabulary"):
        loss(logits, targets + 1, None, 0.0, 1.0, None)
    with pytest.raises(ValueError, match="a target for every position"):
        loss(logits, targets[:1], None, 0.0, 1.0, None)
    with pytest.raises(ValueError, match="the teacher's logits must have the shape"):
        loss(logits, targets, torch.zeros(2, 6), 0.5, 1.0, None)
    with pytest.raises(ValueError, match="the gradient must have the shape and type"):
        loss(logits, targets, None, 0.0, 1.0, torch.zeros(2, 5).bfloat16())


def test_a_loss_whose_gradient_nobody_wants_has_none():
    logits, ids = torch.randn(1, 4, 9), torch.tensor([[1, 2, 3, 4]])
    assert not next_token_loss(logits, ids)[0].requires_grad
    wanted = logits.clone().requires_grad_(True)
    torch.testing.assert_close(next_token_loss(wanted, ids)[0], next_token_loss(logits, ids)[0])


def test_logits_may_lie_in_any_order_and_ids_be_of_32_bits():
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 5, (1, 37), generator=generator)
    logits = torch.randn(1, 5, 37, generator=generator).transpose(1, 2)
    plain = logits.contiguous().requires_grad_(True)
    turned = logits.detach().requires_grad_(True)
    losses = [next_token_loss(plain, ids)[0], next_token_loss(turned, ids.int())[0]]
    assert losses[0] == losses[1]
    found = [torch.autograd.grad(x, y)[0] for x, y in zip(losses, (plain, turned), strict=True)]
    torch.testing.assert_close(*found)


def test_a_single_token_predicts_nothing():
    with pytest.raises(ValueError, match="sequences of 1 tokens predict nothing"):
        next_token_loss(torch.zeros(2, 1, 5), torch.zeros(2, 1, dtype=torch.int64))
