"""Options that several commands take, and what their values mean."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

Transform = Annotated[
    Path | None,
    typer.Option(help="Apply this transform file to the model first (kept in the cache)."),
]


def named_masks(specs: Sequence[str]) -> dict[str, Path]:
    """NAME=FILE, or FILE to name it by its domain -> name and file of each mask.

    Raises:
        ValueError: two masks have one name.
        MaskFileError: a file that is to be named by its domain is no mask file.
    """
    masks: dict[str, Path] = {}
    for name, file in map(_named_mask, specs):
        if name in masks:
            raise ValueError(
                f"two masks are called {name!r} ({masks[name]} and {file}): give one of them"
                " another name with --mask NAME=FILE"
            )
        masks[name] = file
    return masks


def _named_mask(spec: str) -> tuple[str, Path]:
    from maskgen.format.mask_file import read_metadata

    name, found, file = spec.partition("=")
    if found:
        return name, Path(file)
    return read_metadata(Path(spec))["domain"], Path(spec)


def method_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE of `--set` -> value by name; commas make a tuple.

    Raises:
        ValueError: a pair without `=`.
    """
    parsed: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--set {pair!r} is not NAME=VALUE")
        parsed[name] = tuple(value.split(",")) if "," in value else value
    return parsed


def beside_options(pairs: Sequence[str], options: Mapping[str, object]) -> dict[str, Any]:
    """The settings of `--set`, none of which has an option of its own.

    Raises:
        ValueError: one has: what depends on the option would not follow the setting.
    """
    found = method_settings(pairs)
    for name in found.keys() & options.keys():
        raise ValueError(f"--set {name}: say --{name.replace('_', '-')}")
    return found


def numbers(text: str, option: str) -> tuple[int, ...]:
    """`1,8,32` -> the numbers.

    Raises:
        ValueError: not numbers from 1, separated by commas.
    """
    if not re.fullmatch(r"[1-9]\d{0,5}(,[1-9]\d{0,5})*", text):
        raise ValueError(f"{option} {text!r}: must be numbers from 1, separated by commas, as 1,8")
    return tuple(int(part) for part in text.split(","))


def number_pairs(text: str, option: str, separator: str) -> tuple[tuple[int, int], ...]:
    """`128/128,1024/128` -> the pairs.

    Raises:
        ValueError: not pairs of numbers from 1, separated by commas.
    """
    pair = rf"([1-9]\d{{0,5}}){separator}([1-9]\d{{0,5}})"
    found = [re.fullmatch(pair, part) for part in text.split(",")]
    pairs = [(int(match[1]), int(match[2])) for match in found if match]
    if len(pairs) < len(found):
        raise ValueError(
            f"{option} {text!r}: must be pairs of numbers from 1, separated by commas,"
            f" as 128{separator}128"
        )
    return tuple(pairs)
