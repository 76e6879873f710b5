"""The metadata of a mask file: what it must say, and what a reader makes of it."""

from __future__ import annotations

import json
import re
from typing import Any

from maskgen.format.mask import Mask, MaskFileError, check_digest
from maskgen.format.pattern import TWO_FOUR, Pattern
from maskgen.format.versions import FORMAT_VERSION, required_features

FORMAT = "twofour-mask"
DIFFERENCE = "difference"
"""Required by a file whose mask has a parent."""
PATTERN = "pattern"
"""Required by a file of another pattern than 2:4, which readers before patterns must refuse."""

_INTEGER = re.compile(r"0|[1-9][0-9]{0,19}")


def metadata_of(mask: Mask, parent: Mask | None) -> dict[str, str]:
    """What the file of `mask` says about it; with `parent`, stored as a difference."""
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "pattern": str(mask.pattern),
        "method": mask.method,
        "domain": mask.domain,
        "base_digest": mask.base_digest,
        "seed": str(mask.seed),
        "mask_digest": mask.digest,
    }
    if mask.calibration_digest is not None:
        metadata["calibration_digest"] = mask.calibration_digest
    if mask.decoder_weights is not None:
        metadata["decoder_weights"] = str(mask.decoder_weights)
    if parent is None:
        metadata["shapes"] = json.dumps(mask.shapes, separators=(",", ":"))
    else:
        metadata["parent_digest"] = parent.digest
    metadata["required_features"] = json.dumps(_features(parent is not None, mask.pattern))
    return metadata


def check_metadata(metadata: dict[str, str]) -> dict[str, str]:
    """The metadata, once it is known to be a mask's that this version can read.

    Raises:
        ContainerError: it is not a mask's.
        ValueError: it is newer than this reader, or malformed.
    """
    features = required_features(metadata, FORMAT, (DIFFERENCE, PATTERN))
    has_parent = "parent_digest" in metadata
    if has_parent != (DIFFERENCE in features):
        raise MaskFileError("a mask names a parent exactly when it requires 'difference'")
    required = ["pattern", "method", "domain", "base_digest", "seed", "mask_digest"]
    if missing := [
        key for key in [*required, *([] if has_parent else ["shapes"])] if key not in metadata
    ]:
        raise MaskFileError(f"its metadata lacks {', '.join(missing)}")
    pattern = Pattern.parse(metadata["pattern"])
    if (pattern != TWO_FOUR) != (PATTERN in features):
        raise MaskFileError(
            f"a mask requires 'pattern' exactly when its pattern is not 2:4; this one is {pattern}"
        )
    for field in ("seed", "decoder_weights"):
        if not _INTEGER.fullmatch(metadata.get(field, "0")):
            raise MaskFileError(f"{field} {metadata[field][:40]!r} is not an integer")
    check_digest("mask_digest", metadata["mask_digest"])
    if has_parent:
        check_digest("parent_digest", metadata["parent_digest"])
    return metadata


def parse_object(text: str, what: str) -> dict[str, Any]:
    """A JSON object of the metadata.

    Raises:
        MaskFileError: it is none.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MaskFileError(f"its {what} are not JSON: {error}") from None
    if not isinstance(value, dict):
        raise MaskFileError(f"its {what} are not a JSON object")
    return value


def _features(has_parent: bool, pattern: Pattern) -> list[str]:
    return [
        *([DIFFERENCE] if has_parent else []),
        *([PATTERN] if pattern != TWO_FOUR else []),
    ]
