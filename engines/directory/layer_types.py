"""Which layers of a decoder have an attention window, and which have which rope."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engines.directory.config_fields import read_count, read_field, read_flag
from engines.directory.families import Family
from engines.errors import EngineDirectoryError


def layer_types(config: Mapping[str, Any], family: Family, layers: int) -> list[str]:
    """`sliding_attention` or `full_attention`, by layer.

    Raises:
        EngineDirectoryError: `layer_types` is malformed, or names what no engine does.
    """
    windowed = family.windows != "none" and read_field(config, "sliding_window") is not None
    if family.windows in ("flagged", "switched"):
        windowed = windowed and read_flag(config, "use_sliding_window")
    if family.windows in ("none", "all", "flagged"):  # which do not look at the field
        return ["sliding_attention" if windowed else "full_attention"] * layers
    types = config.get("layer_types")
    if types is None:
        return _silent_types(config, family, layers, windowed=windowed)
    if not isinstance(types, list) or len(types) != layers:
        raise EngineDirectoryError(
            f"layer_types is no list of names for num_hidden_layers {layers}"
        )
    for name in types:
        if name not in ("full_attention", "sliding_attention"):
            raise EngineDirectoryError(
                f"layer_types {name!r} is not supported, only full_attention and sliding_attention"
            )
    if "sliding_attention" in types and not windowed:
        raise EngineDirectoryError(
            "layer_types names sliding_attention, but sliding_window is null or"
            " use_sliding_window is off"
        )
    return types


def _silent_types(
    config: Mapping[str, Any], family: Family, layers: int, *, windowed: bool
) -> list[str]:
    """What a family makes of an absent `layer_types`."""
    if not windowed:
        return ["full_attention"] * layers
    if family.windows == "typed":
        every = config.get("sliding_window_pattern", family.full_every)
        if not isinstance(every, int) or every < 1:
            raise EngineDirectoryError(
                f"sliding_window_pattern is {every!r}, expected a number from 1"
            )
        full = [(layer + 1) % every == 0 for layer in range(layers)]
    elif family.turned == "listed":
        full = _turned(config, layers)
    else:
        first = read_count(config, "max_window_layers", least=0, most=1 << 62)
        full = [layer < first for layer in range(layers)]
    return ["full_attention" if one else "sliding_attention" for one in full]


def windows(config: Mapping[str, Any], types: Sequence[str], context: int) -> tuple[int, ...]:
    if "sliding_attention" not in types:
        return (0,) * len(types)
    if read_field(config, "sliding_window") is None:
        raise EngineDirectoryError(
            "layer_types names sliding_attention, but sliding_window is null or"
            " use_sliding_window is off"
        )
    width = read_count(config, "sliding_window", most=1 << 62)
    # A window as wide as the context never hides anything.
    shown = width if width < context else 0
    return tuple(shown if name == "sliding_attention" else 0 for name in types)


def rope_of_layer(
    config: Mapping[str, Any], family: Family, types: Sequence[str]
) -> tuple[int, ...]:
    """Per layer of `types`, which of the model's ropes it has (-1: none).

    Raises:
        EngineDirectoryError: `no_rope_layers` is malformed.
    """
    """Per layer of `types`, how many positions attention sees (0: all).

    Raises:
        EngineDirectoryError: a layer has a window of no width.
    """
    if family.turned == "listed":
        return tuple(0 if turned else -1 for turned in _turned(config, len(types)))
    if family.turned == "windowed":
        return tuple(0 if name == "sliding_attention" else -1 for name in types)
    if family.ropes == "typed":
        return tuple(1 if name == "sliding_attention" else 0 for name in types)
    return (0,) * len(types)


def _turned(config: Mapping[str, Any], layers: int) -> list[bool]:
    """SmolLM3's `no_rope_layers`, which names the layers that do have one."""
    listed = config.get("no_rope_layers")
    if listed is None:
        every = read_count(config, "no_rope_layer_interval")
        return [bool((layer + 1) % every) for layer in range(layers)]
    if (
        not isinstance(listed, list)
        or len(listed) != layers
        or any(one not in (0, 1) for one in listed)
    ):
        raise EngineDirectoryError(
            f"no_rope_layers is no list of 0 and 1 for num_hidden_layers {layers}"
        )
    return [bool(one) for one in listed]
