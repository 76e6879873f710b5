"""The masks that a running CPU engine has loaded."""

from __future__ import annotations

from dataclasses import dataclass

from engines.base import MaskInfo
from engines.cpu.mask_weights import LayerPatches


@dataclass(eq=False)
class LoadedMask:
    """A mask in the native decoder.

    Attributes:
        name: what requests call it; empty for the dense model.
        digest: mask digest; empty for the dense model.
        native: its number in the native decoder.
        weights: the native set of weights that it multiplies.
        info: what the engine reports about it, without the pins.
        patches: its differences to the base mask, if it is kept as a patch.
        pins: unfinished sequences that use it.
        unloaded: no longer offered; freed when the last pin goes.
    """

    name: str
    digest: str
    native: int
    weights: int
    info: MaskInfo | None
    patches: LayerPatches | None = None
    pins: int = 0
    unloaded: bool = False
