"""Whether this version can read a file of ours, by what the file's metadata says of itself."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

from maskgen.format.container import ContainerError

FORMAT_VERSION = 1
"""Of mask files and of transform files."""


class FormatVersionError(ValueError):
    """The file needs a reader that this version is not."""


def required_features(
    metadata: Mapping[str, str], format_name: str, known: Collection[str]
) -> list[str]:
    """The features that a reader of the file needs, all of which are known.

    Args:
        metadata: of the file's header.
        format_name: what `format` has to say.
        known: features that this version reads.

    Raises:
        ContainerError: the file is of another format.
        FormatVersionError: it is newer than this reader, or does not say properly what it needs.
    """
    if metadata.get("format") != format_name:
        raise ContainerError(f"a safetensors file, but its metadata does not name {format_name}")
    if (version := metadata.get("format_version")) != str(FORMAT_VERSION):
        raise FormatVersionError(
            f"format version {version!r:.40} is not {FORMAT_VERSION}; update twofour"
        )
    try:
        features = json.loads(metadata.get("required_features", "[]"))
    except (ValueError, RecursionError):
        features = None
    if not isinstance(features, list):
        raise FormatVersionError("its required_features are not a JSON list")
    if unknown := [item for item in features if item not in known]:
        raise FormatVersionError(f"it requires {unknown!r:.200}, which this version does not know")
    return features
