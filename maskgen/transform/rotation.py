"""Rotations of value channels that concentrate the scores of weights in few of them.

DenoiseRotator (arXiv 2505.23049): with importance S of the rotated weights, S = W^2 times the
second moment of the input, minimise the entropy of S along each row where the rotation is on the
input side (o), and along each column where it is on the output side (v). R is the Q of a QR
decomposition, starts as the identity and is learned by Adam. Only second moments of the inputs are
needed, so no text passes through the model while learning.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskgen.transform.groups import TransformError


@dataclass(frozen=True, slots=True)
class ValueHeads:
    """What a rotation of one layer's value channels is learned from.

    Attributes:
        out: (N, keys, repeat, width): o's weight, its columns by key-value head, query head and
            channel.
        value: (keys, width, K): v's weight, its rows by key-value head and channel.
        out_moments: (keys, repeat, width, width): second moments of o's input inside each head.
        value_moments: (K,): mean squares of v's input.
    """

    out: Tensor
    value: Tensor
    out_moments: Tensor
    value_moments: Tensor


def orthogonal(raw: Tensor) -> Tensor:
    """(..., d, d) -> the Q of its QR decomposition whose R has a positive diagonal."""
    q, r = torch.linalg.qr(raw)
    signed: Tensor = q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    return signed


def entropy(importance: Tensor, dim: int) -> Tensor:
    """Entropy of importance normalised along `dim`, summed over everything else, in nats."""
    total = importance.sum(dim)
    # The logarithm of 0 would be infinite, and its product with the zero gradient no number.
    floor = torch.finfo(importance.dtype).tiny
    weighted: Tensor = torch.special.xlogy(importance, importance.clamp_min(floor)).sum(dim)
    return (total.log() - weighted / total).sum()


def rotation_loss(heads: ValueHeads, rotation: Tensor) -> Tensor:
    """Entropies of o's rows and v's columns under (keys, width, width) rotations."""
    moments = torch.einsum("kid,krij,kjd->krd", rotation, heads.out_moments, rotation)
    moments = moments.clamp_min(0)  # rounded sums of what cannot be negative
    out = torch.einsum("nkri,kid->nkrd", heads.out, rotation).square() * moments
    value = torch.einsum("kid,kic->kdc", rotation, heads.value).square() * heads.value_moments
    # Columns of zeros have no distribution.
    columns = value.flatten(0, 1)
    columns = columns[:, columns.detach().sum(0) != 0]
    rows = out.flatten(1)
    rows = rows[rows.detach().sum(1) != 0]
    return entropy(rows, 1) + entropy(columns, 0)


@dataclass(frozen=True, slots=True)
class LearnedRotation:
    """What Adam found for one layer.

    Attributes:
        rotation: (keys, width, width) fp32, orthogonal; the best that was met.
        before: loss of the identity.
        after: loss of the rotation.
    """

    rotation: Tensor
    before: float
    after: float


def learn_rotation(heads: ValueHeads, steps: int, learning_rate: float) -> LearnedRotation:
    """Rotations of a layer's value heads, by Adam from the identity.

    Raises:
        TransformError: the loss is not a number.
    """
    keys, width, _ = heads.value.shape
    eye = torch.eye(width, dtype=torch.float64, device=heads.value.device)
    raw = eye.repeat(keys, 1, 1).requires_grad_()
    optimizer = torch.optim.Adam([raw], lr=learning_rate)
    best, losses = raw.detach().clone(), [float("inf")]
    for step in range(steps + 1):
        rotation = orthogonal(raw)
        loss = rotation_loss(heads, rotation.to(heads.out.dtype))
        if not torch.isfinite(loss.detach()):
            raise TransformError(
                f"the entropy of importance is {float(loss.detach())} at step {step}: are weights"
                " and activations numbers? A lower learning_rate may help"
            )
        if float(loss.detach()) < min(losses):
            best = rotation.detach().clone()
        losses.append(float(loss.detach()))
        if step < steps:
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return LearnedRotation(best.float(), losses[1], min(losses))
