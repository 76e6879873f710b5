"""Latency files: what a layer's units cost an engine in time, as a budget beside their weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from maskgen.format.json_file import read_json, write_json
from maskgen.structure.width import LayerShape, StructureError, UnitCosts

FORMAT = "twofour-layer-latency"
VERSION = 1
_SIZES = ("hidden", "intermediate", "key_value_heads", "repeat", "head")


@dataclass(frozen=True, slots=True)
class LayerLatency:
    """Times of a layer's linears, as a line over its width.

    Attributes:
        sizes: of the whole layer: hidden, intermediate, key_value_heads, repeat (query heads of
            one key-value head), head (its channels).
        costs: microseconds.
        measured_on: instruction set, threads and tokens, for people.
    """

    sizes: dict[str, int]
    costs: UnitCosts
    measured_on: dict[str, Any]

    def applied(self, shape: LayerShape) -> LayerShape:
        """The shape, with budgets that count this time.

        Raises:
            StructureError: it was measured on layers of other sizes.
        """
        own = sizes_of(shape)
        if own != self.sizes:
            raise StructureError(
                f"the latency was measured on layers of {self.sizes}, the model has {own}; measure"
                " it with `twofour structure latency --model` on this model"
            )
        return replace(shape, measured=self.costs)


def sizes_of(shape: LayerShape) -> dict[str, int]:
    """What times depend on."""
    full = shape.full
    sizes = (shape.hidden, full.intermediate, full.key_value_heads, shape.repeat, shape.head)
    return dict(zip(_SIZES, sizes, strict=True))


def write_latency(path: Path, latency: LayerLatency) -> None:
    """Write a latency file, whole or not at all."""
    costs = latency.costs
    fields = {
        "format": FORMAT,
        "version": VERSION,
        "sizes": latency.sizes,
        "microseconds": {"channel": costs.channel, "head": costs.head, "fixed": costs.fixed},
        "measured_on": latency.measured_on,
    }
    write_json(path, fields)


def read_latency(path: Path) -> LayerLatency:
    """Read a latency file.

    Raises:
        StructureError: it is none, of another version, or has a cost that cannot be.
    """
    fields = read_json(path, StructureError)
    if (fields.get("format"), fields.get("version")) != (FORMAT, VERSION):
        raise StructureError(f"{path} is no latency file of version {VERSION}")
    sizes, times = fields.get("sizes"), fields.get("microseconds")
    if not isinstance(sizes, dict) or set(sizes) != set(_SIZES):
        raise StructureError(f"{path}: sizes must be {', '.join(_SIZES)}")
    if not isinstance(times, dict) or set(times) != {"channel", "head", "fixed"}:
        raise StructureError(f"{path}: microseconds must be channel, head and fixed")
    for name, value in times.items():
        number = isinstance(value, int | float) and math.isfinite(value)
        if not number or value < 0 or (value == 0 and name != "fixed"):
            raise StructureError(f"{path}: {name} costs {value!r} microseconds; it must be above 0")
    costs = UnitCosts(float(times["channel"]), float(times["head"]), float(times["fixed"]))
    measured_on = fields.get("measured_on")
    return LayerLatency(dict(sizes), costs, measured_on if isinstance(measured_on, dict) else {})
