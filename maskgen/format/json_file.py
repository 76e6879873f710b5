"""JSON files that hold one object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskgen.format.atomic_file import write_text


def read_json(path: Path, error: type[ValueError]) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
        path: a regular file; a pipe would be waited for.
        error: raised, with one line that names the file, if it is missing or unreadable, or holds
            no JSON object.
    """
    if not path.is_file():
        raise error(f"{path} is missing")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(value, ensure_ascii=False).encode()  # no half of a surrogate pair
    except (ValueError, RecursionError) as reason:
        raise error(f"{path} is not JSON: {reason}") from None
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason.strerror}") from None
    if not isinstance(value, dict):
        raise error(f"{path} holds {type(value).__name__}, expected an object")
    return value


def write_json(path: Path, fields: Mapping[str, Any], indent: int = 2) -> None:
    """Write an object, whole or not at all."""
    write_text(path, json.dumps(fields, indent=indent) + "\n")
