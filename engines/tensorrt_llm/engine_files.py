"""The built engines of an open directory, which are read when requests first ask for them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from engines.directory.manifest import FileRecord, Manifest
from engines.directory.tied_file import TiedFile
from engines.errors import EngineDirectoryError, MaskError
from engines.tensorrt_llm.record import BuildRecord, read_record


class EngineFiles:
    """Holds the directory to what it was when it was opened.

    Args:
        directory: of the engines.
        manifest, record: of the directory, whose files have just been verified.
        names: engines that may be loaded.
        verify: whether engines that are added later are compared with their SHA-256.
    """

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        record: BuildRecord,
        names: Iterable[str],
        verify: bool,
    ) -> None:
        self._directory = directory
        self._manifest, self._record = manifest, record
        self._verify = verify
        self._ties = {name: self._tie(name, verify=False) for name in names}

    def confirm(self, name: str) -> None:
        """Check the files of one engine before it is loaded.

        Raises:
            EngineDirectoryError: one is missing, or not the open directory's.
        """
        for file in self._ties[name]:
            file.confirm()

    def read_again(self, served: Iterable[str]) -> tuple[Manifest, BuildRecord]:
        """The directory as it is now: masks may have been added to it.

        Args:
            served: engines that must be there unchanged.

        Raises:
            MaskError: the directory is unreadable, or was rebuilt.
        """
        try:
            manifest, record = read_record(self._directory)
        except EngineDirectoryError as error:
            raise MaskError(str(error)) from error
        if manifest.base_digest != self._manifest.base_digest or any(
            record.engines.get(name) != self._record.engines[name]
            or _digest(manifest, name) != _digest(self._manifest, name)
            or _files(manifest, record, name) != _files(self._manifest, self._record, name)
            for name in served
        ):
            raise MaskError(
                "the engine directory was rebuilt since it was opened: start the engine again"
            )
        self._manifest, self._record = manifest, record
        return manifest, record

    def add(self, name: str) -> None:
        """Allow an engine that `read_again` found."""
        self._ties[name] = self._tie(name, verify=self._verify)

    def _tie(self, name: str, *, verify: bool) -> list[TiedFile]:
        files = _files(self._manifest, self._record, name)
        return [TiedFile(self._directory / f, r, verify=verify) for f, r in files.items()]


def _digest(manifest: Manifest, name: str) -> str | None:
    return next((mask.digest for mask in manifest.masks if mask.name == name), None)


def _files(manifest: Manifest, record: BuildRecord, name: str) -> dict[str, FileRecord]:
    folder = f"{record.engines[name].directory}/"
    return {file: found for file, found in manifest.files.items() if file.startswith(folder)}
