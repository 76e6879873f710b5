"""Channels of a decoder that can change places, or be rotated, without a change of its answers.

A *group* names every tensor that has the channels as an axis. Giving all of them the same new order
leaves the model's answers alone up to the order of summation. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Permutation = npt.NDArray[np.uint16]
"""(blocks, size): new channel j of block b is old channel [b, j]."""

Rotation = npt.NDArray[np.float32]
"""(blocks, size, size), orthogonal: new channel j is the sum over old k of k times [k, j]."""

LARGEST = 1 << 16
"""Channels in a block: what an unsigned integer of 16 bits can name."""


class TransformError(ValueError):
    """A transform, or its file, is malformed or does not fit the model that it is used with."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the channels of a group lie in one tensor.

    The axis is read as (blocks, repeat, size, unit): every block of channels comes `repeat` times,
    one after the other, and a channel is `unit` neighbours wide.

    Attributes:
        tensor: name in the model's files.
        axis: of the tensor.
        repeat: as the query heads that read one key-value head.
        unit: as the values of a whole head that moves.
    """

    tensor: str
    axis: int
    repeat: int = 1
    unit: int = 1


@dataclass(frozen=True, slots=True)
class PermutationGroup:
    """Channels that change places together.

    Attributes:
        name: `residual`, `layers.3.mlp`, ...
        blocks: sets of channels that stay apart, each with a permutation of its own.
        size: channels in a block.
        readers: weights that multiply the channels: their columns, which masks group, move.
        writers: what else has the channels as an axis: it follows.
        rotatable: nothing between writers and readers acts on single channels, so that an
            orthogonal matrix is as exact as a permutation.
    """

    name: str
    blocks: int
    size: int
    readers: tuple[Place, ...]
    writers: tuple[Place, ...]
    rotatable: bool = False

    @property
    def places(self) -> tuple[Place, ...]:
        """Readers, then writers."""
        return self.readers + self.writers

    def length(self, place: Place) -> int:
        """How long the axis of a place is."""
        return self.blocks * place.repeat * self.size * place.unit


Groups = Mapping[str, PermutationGroup]
"""Groups by name, in the order in which they are applied."""


def check_groups(
    groups: Groups, shapes: Mapping[str, tuple[int, ...]], known: Iterable[str]
) -> None:
    """Raise TransformError unless the groups account for every tensor of a model.

    Args:
        groups: of the model's architecture.
        shapes: tensor name -> shape, of all that the model's files hold.
        known: further tensors, which no group changes.
    """
    places = [(group, place) for group in groups.values() for place in group.places]
    for group, place in places:
        shape = shapes.get(place.tensor)
        if shape is None:
            raise TransformError(f"the model has no {place.tensor}, which {group.name} moves")
        if place.axis >= len(shape) or shape[place.axis] != group.length(place):
            raise TransformError(
                f"{place.tensor} is {list(shape)}; its config.json says that axis {place.axis} has"
                f" {group.length(place)} channels"
            )
    claimed = {place.tensor for _, place in places} | set(known)
    if unknown := sorted(shapes.keys() - claimed):
        raise TransformError(
            f"the table of transforms does not know what {unknown[0]} does"
            f" ({len(unknown)} such tensors); the model cannot be transformed"
        )


def check_permutation(group: PermutationGroup, permutation: npt.NDArray[Any]) -> None:
    """Raise TransformError unless every row lists all channels of its block once."""
    shape = (group.blocks, group.size)
    if permutation.dtype != np.uint16 or permutation.shape != shape:
        raise TransformError(
            f"{group.name}: a permutation is {permutation.dtype} {list(permutation.shape)},"
            f" expected uint16 {list(shape)}"
        )
    if (np.sort(permutation, axis=1) != np.arange(group.size)).any():
        raise TransformError(f"{group.name}: a permutation does not list every channel once")


def check_rotation(group: PermutationGroup, rotation: npt.NDArray[Any]) -> None:
    """Raise TransformError unless the group can be rotated and the matrices are orthogonal."""
    if not group.rotatable:
        raise TransformError(
            f"{group.name} cannot be rotated: something acts on its single channels"
        )
    shape = (group.blocks, group.size, group.size)
    if rotation.dtype != np.float32 or rotation.shape != shape:
        raise TransformError(
            f"{group.name}: a rotation is {rotation.dtype} {list(rotation.shape)},"
            f" expected float32 {list(shape)}"
        )
    wide = rotation.astype(np.float64)
    error = np.abs(wide @ wide.transpose(0, 2, 1) - np.eye(group.size)).max()
    if not error < 1e-5:
        raise TransformError(
            f"{group.name}: a rotation is not orthogonal, its product with its transpose is off by"
            f" {error:.1e} (at most 1e-5)"
        )


def permute(
    weight: npt.NDArray[Any], group: PermutationGroup, place: Place, permutation: Permutation
) -> None:
    """Give the channels of one tensor their new order, in place."""
    # As integers: numpy moves those of any width fast, and keeps every bit.
    bits = weight.view(f"u{weight.dtype.itemsize}")
    bits[...] = np.take(bits, channel_order(group, place, permutation), axis=place.axis)


def channel_order(
    group: PermutationGroup, place: Place, permutation: Permutation
) -> npt.NDArray[np.intp]:
    """(length,) which old position of a place's axis each new one takes."""
    axis = np.arange(group.length(place), dtype=np.intp)
    split = axis.reshape(group.blocks, place.repeat, group.size, place.unit)
    order = permutation.astype(np.intp)[:, None, :, None]
    return np.take_along_axis(split, order, axis=2).reshape(-1)


def rotate(
    weight: npt.NDArray[Any], group: PermutationGroup, place: Place, rotation: Rotation
) -> None:
    """Rotate the channels of one tensor in place: in fp64, rounded to the tensor's type at the end.

    The sum runs over old channels in ascending order, one rounded product after the other, so that
    every machine gets the same bits; a BLAS would not promise that.
    """
    moved = np.moveaxis(weight, place.axis, -1)
    split = (group.blocks, place.repeat, group.size)
    old = moved.astype(np.float64).reshape(*moved.shape[:-1], *split)
    matrices = rotation.astype(np.float64)
    new = np.zeros_like(old)
    for channel in range(group.size):
        new += old[..., channel, None] * matrices[:, None, channel, :]
    moved[...] = new.reshape(moved.shape).astype(weight.dtype)
