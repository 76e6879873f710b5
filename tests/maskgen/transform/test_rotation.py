"""The objective of rotations, by hand, and what learning makes of it."""

from __future__ import annotations

import math

import pytest
import torch

from maskgen.transform.groups import TransformError
from maskgen.transform.rotation import (
    ValueHeads,
    entropy,
    learn_rotation,
    orthogonal,
    rotation_loss,
)


@pytest.fixture
def heads() -> ValueHeads:
    """Two key-value heads of six channels, three query heads each; the inputs' main axes are not
    the channels."""
    torch.manual_seed(0)
    basis = orthogonal(torch.randn(2, 6, 6))
    spread = torch.tensor([30.0, 10, 3, 1, 0.3, 0.1]).diag()
    inputs = basis @ spread @ basis.transpose(1, 2)
    moments = (inputs @ inputs.transpose(1, 2))[:, None].repeat(1, 3, 1, 1)
    return ValueHeads(torch.randn(8, 2, 3, 6), torch.randn(2, 6, 10), moments, torch.rand(10))


def test_entropy() -> None:
    even, one = torch.tensor([[2.0, 2, 2, 2]]), torch.tensor([[0.0, 5, 0, 0]])
    assert float(entropy(even, 1)) == pytest.approx(math.log(4))
    assert float(entropy(one, 1)) == pytest.approx(0)
    both = torch.cat((even, one))
    assert float(entropy(both, 1)) == pytest.approx(math.log(4))


def test_the_loss_is_that_of_the_rotated_weights(heads: ValueHeads) -> None:
    """Rotating the weights by hand and asking for the identity's loss is the same."""
    rotation = orthogonal(torch.randn(2, 6, 6))
    rotated = ValueHeads(
        torch.stack([heads.out[:, k] @ rotation[k] for k in range(2)], dim=1),
        torch.stack([rotation[k].T @ heads.value[k] for k in range(2)]),
        torch.stack([rotation[k].T @ heads.out_moments[k] @ rotation[k] for k in range(2)]),
        heads.value_moments,
    )
    eye = torch.eye(6).repeat(2, 1, 1)
    assert float(rotation_loss(heads, rotation)) == pytest.approx(
        float(rotation_loss(rotated, eye)), rel=1e-5
    )
    assert float(rotation_loss(heads, rotation)) != pytest.approx(
        float(rotation_loss(heads, eye)), rel=1e-2
    )


def test_the_identity_is_where_learning_starts(heads: ValueHeads) -> None:
    eye = torch.eye(6).repeat(2, 1, 1)
    assert torch.allclose(orthogonal(eye), eye)
    assert torch.allclose(learn_rotation(heads, 0, 0.1).rotation, eye)


def test_learning_lowers_the_loss_and_stays_orthogonal(heads: ValueHeads) -> None:
    learned = learn_rotation(heads, 40, 0.05)
    rotation = learned.rotation
    eye = torch.eye(6).repeat(2, 1, 1)
    assert (rotation @ rotation.transpose(1, 2) - eye).abs().max() < 1e-5
    assert learned.before == pytest.approx(float(rotation_loss(heads, eye)), rel=1e-5)
    assert learned.after == pytest.approx(float(rotation_loss(heads, rotation)), rel=1e-5)
    assert learned.after < 0.95 * learned.before


def test_dead_rows_and_columns_do_not_matter(heads: ValueHeads) -> None:
    heads.out[3] = 0
    heads.value[:, :, 2] = 0
    rotation = learn_rotation(heads, 3, 0.05).rotation
    assert torch.isfinite(rotation).all()


def test_weights_that_are_zero_and_moments_that_round_below_it(heads: ValueHeads) -> None:
    """Zeros in a row that is not all zero, and inputs on one axis alone."""
    axis = torch.tensor([1e-3, 1e3, 0.0, 1e-3, 1.0, 1e3])
    moments = torch.outer(axis, axis).repeat(2, 3, 1, 1)
    out = heads.out * (torch.arange(8)[:, None, None, None] + torch.arange(6) != 5)
    value = heads.value.clone()
    value[:, ::2, 3] = 0
    sparse = ValueHeads(out, value, moments, heads.value_moments)
    learned = learn_rotation(sparse, 20, 0.05)
    assert learned.after < learned.before
    rotation = learned.rotation
    assert (rotation @ rotation.transpose(1, 2) - torch.eye(6)).abs().max() < 1e-5


def test_a_loss_that_is_no_number_is_refused(heads: ValueHeads) -> None:
    moments = heads.value_moments.clone()
    moments[3] = float("nan")
    broken = ValueHeads(heads.out, heads.value, heads.out_moments, moments)
    with pytest.raises(TransformError, match="entropy of importance is nan at step 0"):
        learn_rotation(broken, 3, 0.05)
