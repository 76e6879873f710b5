"""Fields of a `config.json`, with a family's own value where one is absent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engines.directory.families import FAMILIES
from engines.errors import EngineDirectoryError

# Far beyond any model; what a damaged file may say must not fill the memory.
_MOST = 1 << 24


def read_field(config: Mapping[str, Any], name: str) -> Any:
    """A field, or the architecture's default where it is absent; null stays None."""
    return config.get(name, FAMILIES[config["model_type"]].defaults.get(name))


def read_count(
    config: Mapping[str, Any],
    name: str,
    if_null: int | None = None,
    *,
    least: int = 1,
    most: int = _MOST,
) -> int:
    """A whole number from `least` to `most`; `if_null` where it is null.

    Raises:
        EngineDirectoryError: it is none.
    """
    value = read_field(config, name)
    value = if_null if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise EngineDirectoryError(
            f"config.json: {name} is {value!r}, expected a number from {least} to {most}"
        )
    return value


def read_flag(config: Mapping[str, Any], name: str) -> bool:
    """True or false; null is false.

    Raises:
        EngineDirectoryError: it is neither.
    """
    value = read_field(config, name)
    value = False if value is None else value
    if not isinstance(value, bool):
        raise EngineDirectoryError(f"config.json: {name} is {value!r}, expected true or false")
    return value


def read_number(config: Mapping[str, Any], name: str, *, if_null: float | None = None) -> float:
    """A positive number; `if_null` where it is null.

    Raises:
        EngineDirectoryError: it is none.
    """
    value = read_field(config, name)
    if value is None and if_null is not None:
        return if_null
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= 1e30:
        raise EngineDirectoryError(f"config.json: {name} is {value!r}, expected a positive number")
    return float(value)
