"""Which share of a decoder's weights a mask covers, and how that is said.

A decoder's weights are the matrices inside its decoder layers: everything of two or more
dimensions, experts included. Biases, norms, embeddings and the output head do not count.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maskgen.format.mask import Mask

_IN_LAYER = re.compile(r"(.*?)\.([0-9]{1,9})\.(.+)")


@dataclass(frozen=True, slots=True)
class DenseWeight:
    """A matrix of a decoder layer that stays dense.

    Attributes:
        reason: why.
        weights: how many it holds.
    """

    reason: str
    weights: int


def decoder_position(name: str) -> tuple[str, int, str] | None:
    """(list of decoder layers, index in it, name inside the layer); None outside of any."""
    match = _IN_LAYER.fullmatch(name)
    return (match[1], int(match[2]), match[3]) if match else None


def decoder_weights(shapes: Mapping[str, Sequence[int]], layers: Iterable[str]) -> int:
    """How many weights the decoder that holds `layers` has; the layers themselves always count.

    Args:
        shapes: tensor name -> shape, of every tensor of the model.
        layers: names of masked layers.
    """
    listed = {f"{name}.weight" for name in layers}
    stacks = {place[0] for name in listed if (place := decoder_position(name)) is not None}

    def inside(name: str) -> bool:
        place = decoder_position(name)
        return name in listed or (place is not None and place[0] in stacks)

    return sum(
        math.prod(shape) for name, shape in shapes.items() if len(shape) > 1 and inside(name)
    )


def coverage(mask: Mask) -> str:
    """One line: which share of the decoder's weights the mask covers.

    Files of older releases do not say how large the decoder is; the line then says that.
    """
    if mask.decoder_weights is None:
        return (
            f"masks {mask.weights:,} weights, all those of the layers that it lists; the file does"
            " not say how many the decoder has"
        )
    return (
        f"masks {mask.weights:,} of the decoder's {mask.decoder_weights:,} weights "
        f"({share(mask.weights, mask.decoder_weights)})"
    )


def dense_lines(dense: Mapping[str, DenseWeight], decoder: int) -> list[str]:
    """A line for every kind of weight that stays dense: its name, its share, and why.

    Args:
        dense: module or parameter name -> the weight.
        decoder: weights of the whole decoder.
    """
    lines = []
    for names, reason in grouped(dense):
        weights = sum(dense[name].weights for name in names)
        lines.append(
            f"{together(names)} stays dense ({share(weights, decoder)} of the decoder's weights):"
            f" {reason}"
        )
    return lines


def grouped(dense: Mapping[str, DenseWeight]) -> list[tuple[list[str], str]]:
    """(names, reason) of weights that have the same place in their decoder layers."""

    def kind(name: str) -> tuple[str, str]:
        place = decoder_position(name)
        return (name if place is None else f"{place[0]} {place[2]}", dense[name].reason)

    return [(list(names), key[1]) for key, names in groupby(sorted(dense, key=kind), key=kind)]


def together(names: Sequence[str]) -> str:
    """`model.layers.0.mlp.up_proj` and its like in layers 1 to 3: `model.layers.0-3.mlp.up_proj`.

    All names have the same place in their decoder layers.
    """
    places = [place for name in names if (place := decoder_position(name)) is not None]
    if len(places) < 2:
        return names[0]
    stack, _, inner = places[0]
    return f"{stack}.{_ranges(sorted(index for _, index, _ in places))}.{inner}"


def share(part: int, whole: int) -> str:
    """A share in per cent, never rounded to none or to all."""
    if part in (0, whole):
        return "0 %" if part == 0 else "100 %"
    return f"{min(max(100 * part / whole, 0.1), 99.9):.1f} %"


def _ranges(numbers: Sequence[int]) -> str:
    """0, 1, 2, 5 -> `0-2,5`."""
    runs = groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    ends = [[number for _, number in run] for _, run in runs]
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in ends)
