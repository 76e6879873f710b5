"""How every engine opens an engine directory."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from engines.directory.files import verify_files
from engines.directory.manifest import Manifest, MaskRecord, Target, read_manifest
from engines.directory.progress import BuildProgress, silent
from engines.errors import EngineDirectoryError
from engines.mask_rules import check_runs
from maskgen.format.mask import Mask, MaskFileError
from maskgen.format.mask_file import read_mask
from maskgen.format.model_directory import CONFIG_FILE

_log = logging.getLogger(__name__)


def open_directory(
    directory: Path,
    target: Target,
    *,
    verify: bool = True,
    required: Collection[str] = (CONFIG_FILE,),
    later: Collection[str] = (),
    progress: BuildProgress = silent,
) -> Manifest:
    """Read the manifest and verify the files that it lists.

    Args:
        target: what the directory must have been built for.
        verify: compare the content of all files, and not their sizes alone.
        required: files that the manifest must list.
        later: files that the caller verifies by itself, when it reads them.
        progress: told how much has been read.

    Raises:
        EngineDirectoryError: the directory is malformed, for another target, or a file is missing
            or not what was built.
    """
    manifest = read_manifest(directory)
    if manifest.target != target:
        raise EngineDirectoryError(
            f"{directory} was built for {manifest.target}, not for the {target} engine"
        )
    if not manifest.has_digests:
        _log.warning(
            "%s was built before files were recorded with their SHA-256: damage cannot be noticed;"
            " build it again with `twofour build --overwrite`",
            directory,
        )
    elif missing := sorted(set(required) - manifest.files.keys()):
        raise EngineDirectoryError(
            f"{directory}: engine.json does not list {missing[0]}: it is damaged or was edited;"
            " build the directory again"
        )
    if verify and manifest.has_digests:
        now = {name: record for name, record in manifest.files.items() if name not in later}
        verify_files(directory, now, progress)
    return manifest


def read_own_mask(directory: Path, manifest: Manifest, record: MaskRecord) -> Mask:
    """A mask that the directory carries.

    Raises:
        EngineDirectoryError: its file is malformed, or holds another mask than the manifest names.
        MaskError: the target does not run its pattern.
    """
    try:
        mask = read_mask(directory / record.file)
    except (MaskFileError, OSError) as error:
        raise EngineDirectoryError(f"mask {record.name!r}: {error}") from error
    check_runs(record.name, mask.pattern, manifest.target, manifest.values)
    if (mask.digest, mask.base_digest) != (record.digest, manifest.base_digest):
        raise EngineDirectoryError(
            f"{directory / record.file} holds another mask than engine.json names: build the"
            " directory again"
        )
    return mask
