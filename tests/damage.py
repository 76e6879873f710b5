"""Seeded damage to files: bytes flipped, cut and zeroed, JSON with values that nobody expects."""

from __future__ import annotations

import json
import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_DEEP = "__deep__"
_STRANGE: tuple[Any, ...] = (
    *(-1, 0, 1, 3, 7, 2**31, 2**48 - 1, 2**48, 2**63, 2**64, 10**30, -(2**63)),
    *(1e308, float("nan"), float("inf"), 0.5, None, True, False, [], {}, [[]], {"a": 1}, _DEEP),
    *("", "x", "x" * 5000, "\ud800", "a\nb", "../x", "/dev/zero", "0", "-1", "[", "[]", "9" * 24),
)
_NAMES = ("", "x", "__metadata__", "a.b", "model.layers.99999999.mlp.up_proj", "\ud800", "\n")


def damaged(path: Path, rng: random.Random) -> bytes:
    """The content of a file with something wrong; safetensors and JSON are known by their names."""
    data = path.read_bytes()
    if path.suffix not in (".json", ".safetensors"):
        return _bytes(data, rng)
    if path.suffix == ".json":
        return _bytes(data, rng) if rng.random() < 0.4 else _dump(_json(json.loads(data), rng))
    length = int.from_bytes(data[:8], "little")
    choice = rng.random()
    if choice < 0.05:
        claimed = rng.choice([0, 1, length + 1, length - 1, 2**63, 2**64 - 1, 100_000_001])
        return claimed.to_bytes(8, "little") + data[8:]
    if choice < 0.45:
        return _bytes(data, rng)
    header = _dump(_json(json.loads(data[8 : 8 + length]), rng))
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def check_error(error: Exception, place: object) -> None:
    """An error that a user can read: one line of a length to read, which names the place."""
    text = str(error)
    assert "\n" not in text, text
    assert len(text) < 1000, text
    assert str(place) in text, text


@contextmanager
def memory_limit(extra: int) -> Iterator[None]:
    """No more than `extra` bytes of address space beyond what is mapped now."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + extra, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _bytes(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.randint(1, 256))
    match rng.randrange(6):
        case 0:
            del changed[start:]
        case 1:
            changed += rng.randbytes(rng.randint(1, 64))
        case 2:
            changed[start:end] = bytes(end - start)
        case 3:
            del changed[start:end]
        case _:
            for _ in range(rng.randint(1, 4)):
                # Headers are where a byte matters most.
                reach = len(data) if rng.random() < 0.5 else min(len(data), 1500)
                changed[rng.randrange(reach)] = rng.randrange(256)
    return bytes(changed)


def _json(value: Any, rng: random.Random) -> Any:
    places = [place for place in _places(value) if place]
    if not places:
        return rng.choice(_STRANGE)
    *way, key = rng.choice(places)
    parent = value
    for step in way:
        parent = parent[step]
    old, choice = parent[key], rng.random()
    if choice < 0.15:
        del parent[key]
    elif choice < 0.25 and isinstance(parent, dict):
        parent[rng.choice(_NAMES)] = parent.pop(key)
    elif choice < 0.35 and _is_json(old):
        parent[key] = json.dumps(_json(json.loads(old), rng))
    elif choice < 0.45 and type(old) is int:
        parent[key] = old + rng.choice([-1, 1, 8, -8, 64, 1 << 20])
    else:
        parent[key] = rng.choice(_STRANGE)
    return value


def _is_json(value: Any) -> bool:
    if not isinstance(value, str) or value[:1] not in ("[", "{"):
        return False
    try:
        json.loads(value)
    except ValueError:  # such as a chat template
        return False
    return True


def _places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield way
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from _places(value[key], (*way, key))


def _dump(value: Any) -> bytes:
    return json.dumps(value).replace(f'"{_DEEP}"', "[" * 50_000 + "]" * 50_000).encode()
