"""Where a mask is refused: the rules for naming, loading and unloading one.

The rules that hold for every target, so that the same mask gets the same answer from `twofour
build` and from every engine. What one target alone cannot run its builder refuses; a damaged file
is refused by `maskgen.format`, a path of a request by `serving/api/admin.py`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from engines.errors import MaskError, UnknownMaskError
from maskgen.format.mask import Mask, MaskFileError
from maskgen.format.mask_file import read_mask
from maskgen.format.pattern import TWO_FOUR, Pattern

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""What a mask may be called; a request names it as `<model>:<mask>`."""

DENSE = "dense"
"""What requests call the model without a mask, where a directory holds it; no mask is called so."""

RUN_PATTERNS: Mapping[str, tuple[Pattern, ...] | None] = {
    "cpu": (TWO_FOUR,),
    "vllm": (TWO_FOUR,),
    "tensorrt-llm": (TWO_FOUR,),
    "reference": None,
}
"""The patterns that each target has kernels for; None: every one, as dense weights with zeros."""

_HALVES = (TWO_FOUR, Pattern(4, 8), Pattern(8, 16), Pattern(16, 32))

LOWBIT_PATTERNS: Mapping[str, tuple[Pattern, ...]] = {"cpu": _HALVES, "vllm": _HALVES}
"""The same where values are int8 or int4."""


@dataclass(frozen=True, slots=True)
class MaskedLayers:
    """What all masks of a directory have in common.

    Attributes:
        pattern: of every mask.
        shapes: layer name -> (outputs, inputs) of its weight.
    """

    pattern: Pattern
    shapes: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, mask: Mask) -> MaskedLayers:
        """Those of a directory whose default mask is this one."""
        return cls(mask.pattern, mask.shapes)


def describe_patterns(target: str) -> str:
    """The patterns that a target runs, for people."""
    patterns = RUN_PATTERNS[target]
    if patterns is None:
        return "every N:M"
    more = [str(pattern) for pattern in LOWBIT_PATTERNS.get(target, ()) if pattern not in patterns]
    lowbit = f" ({', '.join(more)} with int8 or int4 values)" if more else ""
    return ", ".join(map(str, patterns)) + lowbit


def check_runs(name: str, pattern: Pattern, target: str, values: str = "bf16") -> None:
    """Raise MaskError unless a target runs masks of this pattern with these values."""
    if _runs(target, pattern, values):
        return
    able = [other for other in RUN_PATTERNS if _runs(other, pattern, "bf16")]
    if pattern in LOWBIT_PATTERNS.get(target, ()):
        able.insert(0, f"{target} with --values int8 or int4")
    raise MaskError(
        f"mask {name!r} is {pattern}; {target} runs {describe_patterns(target)}: build for"
        f" {', '.join(able)}, or make a mask of a pattern that {target} runs"
    )


def _runs(target: str, pattern: Pattern, values: str) -> bool:
    patterns = RUN_PATTERNS[target] if values == "bf16" else LOWBIT_PATTERNS.get(target, ())
    return patterns is None or pattern in patterns


def check_name(name: str) -> None:
    """Raise MaskError unless `name` may name a mask, and the files made for it."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise MaskError(
            f"{name!r} cannot name a mask: letters, digits, '.', '_' and '-', at most 64, the first"
            " a letter or digit"
        )
    if name == DENSE:
        raise MaskError(
            f"{DENSE!r} cannot name a mask: it is what requests call the model without one; name"
            " the mask otherwise"
        )


def check_load(name: str, loaded: Collection[str], default: str | None, sealed: bool) -> None:
    """May a mask be loaded under this name?

    Args:
        name: what requests will call it.
        loaded: names that are taken.
        default: the engine's default mask; None if it was built without one.
        sealed: whether its directory left out what the masks drop.

    Raises:
        MaskError: the name is malformed or taken, or the engine is dense or its directory sealed.
    """
    check_name(name)
    if name in loaded:
        raise MaskError(f"a mask named {name!r} is loaded already")
    if default is None:
        raise MaskError("this engine is dense: it was built without a mask, and takes none")
    if sealed:
        raise MaskError(
            "this engine directory is sealed: it holds the weights of its mask alone, so none can"
            " be added; build it again without --sealed, and without values made for one mask"
        )


def read_fitting(
    name: str,
    path: Path,
    target: str,
    base_digest: str,
    layers: MaskedLayers | None,
    values: str = "bf16",
) -> Mask:
    """Read a mask file that an engine is to use.

    Args:
        name: what requests will call it; for the messages.
        path: the mask file.
        target: what is to run it.
        base_digest: digest of the engine's base model.
        layers: those of the default mask; None for the default mask itself.
        values: type of the engine's weights.

    Raises:
        MaskError: the file is unreadable, or the mask does not fit.
    """
    try:
        mask = read_mask(path)
    except (MaskFileError, OSError) as error:
        raise MaskError(str(error)) from error
    check_fits(name, mask, target, base_digest, layers, values)
    return mask


def check_fits(
    name: str,
    mask: Mask,
    target: str,
    base_digest: str,
    layers: MaskedLayers | None,
    values: str = "bf16",
) -> None:
    """Does a mask belong to a target, to a base model, and to the other masks of a directory?

    Args:
        name: for the messages.
        mask: the mask.
        target: what is to run it.
        base_digest: digest of the base model.
        layers: those of the default mask; None for the default mask itself.
        values: type of the weights that it is to be a mask of.

    Raises:
        MaskError: the target does not run its pattern, it belongs to another model, or has another
            pattern, other layers or shapes.
    """
    check_runs(name, mask.pattern, target, values)
    if mask.base_digest != base_digest:
        raise MaskError(
            f"mask {name!r} was made for the model with base digest {mask.base_digest[:12]}...,"
            f" this one's is {base_digest[:12]}..."
        )
    if layers is None:
        return
    if mask.pattern != layers.pattern:
        raise MaskError(
            f"mask {name!r} is {mask.pattern}, the default mask {layers.pattern}; an engine needs"
            " one pattern in all its masks"
        )
    if mask.shapes == layers.shapes:
        return
    odd = min(
        layer
        for layer in mask.shapes.keys() | layers.shapes.keys()
        if mask.shapes.get(layer) != layers.shapes.get(layer)
    )
    raise MaskError(
        f"mask {name!r} lists other layers than the default mask, or other shapes ({odd} first);"
        " an engine needs the same layers in all its masks"
    )


def check_requested(name: str, loaded: Collection[str]) -> None:
    """Raise UnknownMaskError unless the mask that a request names is loaded."""
    if name not in loaded:
        raise UnknownMaskError(f"no mask named {name!r} is loaded", param="model")


def check_unload(name: str, loaded: Collection[str], default: str | None) -> None:
    """May this mask be unloaded?

    Raises:
        UnknownMaskError: it is not loaded.
        MaskError: it is the default mask.
    """
    if name not in loaded:
        raise UnknownMaskError(f"no mask named {name!r} is loaded", param="name")
    if name == default:
        raise MaskError(f"{name!r} is the default mask and cannot be unloaded")
