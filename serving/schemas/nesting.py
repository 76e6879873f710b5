"""How deeply JSON values may be nested where a schema leaves them open.

Answers repeat such values, and pydantic writes no more than 255 levels; templates walk through them
by recursion.
"""

from __future__ import annotations

from typing import Any

MAX_LEVELS = 200
"""Lists and objects within each other: a hundred levels of a JSON schema's `properties`."""


def too_deep(value: Any, levels: int = MAX_LEVELS) -> bool:
    """Whether lists and objects lie within each other more than `levels` times."""
    layer = [value]
    for _ in range(levels + 1):
        layer = [inner for outer in layer for inner in _inside(outer)]
        if not layer:
            return False
    return True


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
