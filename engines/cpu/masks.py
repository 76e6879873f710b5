"""What sequences of a running CPU engine run: one of its masks, or the model without any."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engines.base import MaskInfo
from engines.cpu.mask_weights import LayerPatches


@dataclass(eq=False)
class DenseModel:
    """The model without a mask: all that an engine has, or beside its masks.

    Attributes:
        native: the number of its (empty) mask in the native decoder.
        weights: the native set of weights that it multiplies.
        resident_bytes: memory that it takes beside the masks.
        pins: unfinished sequences that use it.
    """

    native: int
    weights: int
    resident_bytes: int = 0
    pins: int = 0


@dataclass(eq=False)
class LoadedMask:
    """A mask in the native decoder.

    Attributes:
        native: its number in the native decoder.
        weights: the native set of weights that it multiplies.
        info: what the engine reports about it, without the pins.
        patches: its differences to the base mask, if it is kept as a patch.
        file: the mask file, to make it again from.
        pins: unfinished sequences that use it.
        used: grows with every use of a mask of this engine.
        resident: whether the native decoder has it; `native` and `weights` mean nothing otherwise.
        unloaded: no longer offered; freed when the last pin goes.
    """

    native: int
    weights: int
    info: MaskInfo
    patches: LayerPatches | None = None
    file: Path = Path()
    pins: int = 0
    used: int = 0
    resident: bool = True
    unloaded: bool = False

    @property
    def name(self) -> str:
        """What requests call it."""
        return self.info.name

    @property
    def digest(self) -> str:
        """Its mask digest."""
        return self.info.digest


Variant = DenseModel | LoadedMask
"""What a sequence runs, from its start to its end."""
