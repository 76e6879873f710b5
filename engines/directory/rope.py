"""Rotary position embeddings: what a config.json says about them, and their frequencies.

Follows transformers 5 (`modeling_rope_utils.py`), which also reads what version 4 wrote: there
`rope_theta` stood beside `rope_scaling`, here both are in `rope_parameters`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.errors import EngineDirectoryError

_NEEDS_PRETRAINED_CONTEXT = ("llama3", "yarn", "longrope")
_PRETRAINED_CONTEXT = "original_max_position_embeddings"

Frequencies = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Rope:
    """A rotary position embedding.

    Attributes:
        kind: its `rope_type`: `default`, `linear`, `dynamic`, `llama3`, `yarn`, `longrope`, or one
            that no engine runs.
        theta: wavelength base.
        fields: what else belongs to the kind, as config.json names it.
        dim: dimensions of a head that turn, the first ones.
        context: most positions that config.json states.
    """

    kind: str
    theta: float
    fields: Mapping[str, Any]
    dim: int
    context: int

    def number(self, name: str, default: float | None = None) -> float:
        """A positive number among `fields`.

        Raises:
            EngineDirectoryError: it is none, or is absent without a default.
        """
        value = self.fields.get(name)
        if value is None and default is not None:
            return default
        return _positive(value, f"{name} of the {self.kind} rope")

    def scale(self) -> float:
        """`factor`, or where it is null the growth of the context since pretraining."""
        return self.number("factor", self.context / self.number(_PRETRAINED_CONTEXT))

    @property
    def reach(self) -> int:
        """Most positions of a sequence that the frequencies are for.

        Beyond the context of its pretraining a longrope has other ones, for all positions at once:
        what is cached of shorter sequences would not fit.

        Raises:
            EngineDirectoryError: the context of its pretraining is no positive number.
        """
        if self.kind != "longrope":
            return self.context
        return max(1, min(self.context, int(min(self.number(_PRETRAINED_CONTEXT), 1 << 62))))

    def inverse_wavelengths(self, theta: float | None = None) -> npt.NDArray[np.float32]:
        """(dim / 2,) unscaled frequencies."""
        exponents = np.arange(0, self.dim, 2, dtype=np.float32) / np.float32(self.dim)
        base = np.float32(self.theta if theta is None else theta)
        inverse: npt.NDArray[np.float32] = (1.0 / np.power(base, exponents)).astype(np.float32)
        return inverse

    def frequencies(self) -> tuple[npt.NDArray[np.float32], float]:
        """Angle per position of each pair of a head, and the factor of cosines and sines.

        Returns:
            (dim / 2,) frequencies, computed in float32 as transformers does; factor.

        Raises:
            EngineDirectoryError: the kind is not supported, or a field is missing or malformed.
        """
        if self.kind not in _FREQUENCIES:
            raise EngineDirectoryError(
                f"rope_type {self.kind!r} is not supported (supported: {', '.join(_FREQUENCIES)})"
            )
        try:
            with np.errstate(all="ignore"):  # what is not finite is refused below
                found, factor = _FREQUENCIES[self.kind](self)
                frequencies: npt.NDArray[np.float32] = found.astype(np.float32)
        except EngineDirectoryError:
            raise
        except (ArithmeticError, ValueError) as error:
            raise EngineDirectoryError(
                f"config.json: the {self.kind} rope has no frequencies: {error}"
            ) from None
        if not np.isfinite(frequencies).all():
            raise EngineDirectoryError(
                f"config.json: the {self.kind} rope has frequencies that are no numbers"
            )
        return frequencies, factor


def rope_fields(config: Mapping[str, Any], layer_type: str, theta: float) -> dict[str, Any]:
    """The fields of the rope of one type of layers, as those of a model with one rope for all.

    Version 5 names the types in `rope_parameters`. In version 4 `rope_scaling` was for layers that
    see all, which it still is.

    Raises:
        EngineDirectoryError: a field is no object.
    """
    typed = config.get("rope_parameters") or {}
    given = typed.get(layer_type) if isinstance(typed, dict) else None
    scaling = config.get("rope_scaling") if layer_type == "full_attention" else None
    for fields in (typed, given, scaling):
        if fields is not None and not isinstance(fields, dict):
            raise EngineDirectoryError(f"config.json: {fields!r} is no object of a rope's fields")
    # Where nothing is given, a `type` of version 4 does not count against this `rope_type`.
    own = {"rope_type": "default"} if given is None else given
    return {"rope_parameters": {"rope_theta": theta} | own | (scaling or {})}


def read_rope(
    config: Mapping[str, Any],
    head_dim: int,
    context: int,
    *,
    theta: float = 10000.0,
    share: float | None = None,
    renamed: Mapping[str, str] = {},
    pretrained: int | None = None,
) -> Rope:
    """The rotary embedding that a config.json describes.

    `rope_scaling` wins over `rope_parameters`, and what stands inside over what stands beside.

    Args:
        config: with the fields of one rope.
        head_dim: width of a head.
        context: most positions of a sequence.
        theta: where the fields name none.
        share: the same for `partial_rotary_factor`; None where the family does not know the field.
        renamed: `rope_type` -> what it is called here.
        pretrained: the context of the pretraining where none stands beside the rope; None: what
            stands inside, or `context`.

    Raises:
        EngineDirectoryError: a field is malformed, or asks for what no engine does.
    """
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    given = config.get(name) or {}
    if not isinstance(given, dict) or any(isinstance(value, dict) for value in given.values()):
        raise EngineDirectoryError(
            f"config.json: {name} is {given!r}; one rope for all layers is supported"
        )
    beside = {key: config[key] for key in ("rope_theta", "partial_rotary_factor") if key in config}
    rope = beside | given
    kind = str(rope.pop("rope_type", None) or rope.pop("type", None) or "default")
    rope.pop("type", None)
    kind = renamed.get(kind, kind)
    own_theta, own_share = rope.pop("rope_theta", None), rope.pop("partial_rotary_factor", None)
    theta = theta if own_theta is None else _positive(own_theta, "rope_theta")
    if share is None and own_share not in (None, 1):
        raise EngineDirectoryError(f"partial_rotary_factor {own_share!r} is not supported, only 1")
    dim = int(head_dim * _share(share, own_share))
    if dim < 2 or dim % 2:
        raise EngineDirectoryError(
            f"partial_rotary_factor turns {dim} of {head_dim} dimensions; rotary embeddings need"
            " pairs"
        )
    if kind in _NEEDS_PRETRAINED_CONTEXT:
        outside = config.get(_PRETRAINED_CONTEXT, pretrained)
        rope = {_PRETRAINED_CONTEXT: context} | rope
        rope |= {} if outside is None else {_PRETRAINED_CONTEXT: outside}
    return Rope(kind, theta, rope, dim, context)


def _share(silent: float | None, given: Any) -> float:
    share = silent if given is None else given
    share = 1.0 if share is None else share
    if not isinstance(share, int | float) or isinstance(share, bool) or not 0 < share <= 1:
        raise EngineDirectoryError(
            f"config.json: partial_rotary_factor is {share!r}, expected a number up to 1"
        )
    return share


def _positive(value: Any, name: str) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= sys.float_info.max:
        raise EngineDirectoryError(f"config.json: {name} is {value!r}, expected a positive number")
    return float(value)


def _default(rope: Rope) -> tuple[Frequencies, float]:
    return rope.inverse_wavelengths(), 1.0


def _linear(rope: Rope) -> tuple[Frequencies, float]:
    return rope.inverse_wavelengths() / np.float32(rope.number("factor")), 1.0


def _dynamic(rope: Rope) -> tuple[Frequencies, float]:
    """Scales beyond the context only, where no engine goes."""
    factor = rope.number("factor")
    growth = factor * rope.context / rope.context - (factor - 1)
    theta = rope.theta * growth ** (rope.dim / (rope.dim - 2))
    return rope.inverse_wavelengths(theta), 1.0


def _llama3(rope: Rope) -> tuple[Frequencies, float]:
    inverse = rope.inverse_wavelengths()
    factor, old = rope.number("factor"), rope.number(_PRETRAINED_CONTEXT)
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if high <= low:
        raise EngineDirectoryError(
            f"config.json: high_freq_factor {high} of the llama3 rope must exceed low_freq_factor"
            f" {low}"
        )
    wavelength = 2 * math.pi / inverse
    smooth = (old / wavelength - low) / (high - low)
    blended = (1 - smooth) * inverse / factor + smooth * inverse
    scaled = np.where(wavelength > old / low, inverse / factor, inverse)
    middle = (wavelength >= old / high) & (wavelength <= old / low)
    return np.where(middle, blended, scaled), 1.0


def _yarn(rope: Rope) -> tuple[Frequencies, float]:
    """Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models", 2023."""
    factor, old, dim = rope.scale(), rope.number(_PRETRAINED_CONTEXT), rope.dim

    def dimension(rotations: float) -> float:
        return dim * math.log(old / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low = dimension(rope.number("beta_fast", 32.0))
    high = dimension(rope.number("beta_slow", 1.0))
    if rope.fields.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high += 0.001 if low == high else 0
    ramp = np.clip((np.arange(dim // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    keep = 1 - ramp.astype(np.float32)
    inverse = rope.inverse_wavelengths()
    return inverse / np.float32(factor) * (1 - keep) + inverse * keep, _yarn_factor(rope, factor)


def _yarn_factor(rope: Rope, scale: float) -> float:
    def mscale(weight: float) -> float:
        return 1.0 if scale <= 1 else 0.1 * weight * math.log(scale) + 1.0

    if rope.fields.get("attention_factor") is not None:
        return rope.number("attention_factor")
    if rope.fields.get("mscale") and rope.fields.get("mscale_all_dim"):
        return mscale(rope.number("mscale")) / mscale(rope.number("mscale_all_dim"))
    return mscale(1.0)


def _longrope(rope: Rope) -> tuple[Frequencies, float]:
    """Ding et al., "LongRoPE: Extending LLM Context Window Beyond 2 Million Tokens", 2024."""
    old, factor = rope.number(_PRETRAINED_CONTEXT), rope.scale()
    short = rope.fields.get("short_factor")
    if not isinstance(short, list) or len(short) != rope.dim // 2:
        raise EngineDirectoryError(
            f"config.json: short_factor of the longrope rope is {short!r}, expected"
            f" {rope.dim // 2} numbers"
        )
    divisors = [_positive(value, "an entry of the longrope rope's short_factor") for value in short]
    attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(old))
    shrink: npt.NDArray[np.float32] = np.array(divisors, np.float32)
    return rope.inverse_wavelengths() / shrink, rope.number("attention_factor", attention)


_FREQUENCIES: dict[str, Callable[[Rope], tuple[Frequencies, float]]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
