"""Opens an engine directory of target `cpu`: everything that is read from disk at the start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engines.cpu.loaded_weights import LoadedTensors
from engines.cpu.value_form import version_of
from engines.directory.decoder_config import DecoderConfig, read_decoder_config
from engines.directory.manifest import (
    COMPLEMENT_FILE,
    DENSE_FILE,
    ENGINE_WEIGHTS_FILE,
    LayoutRecord,
    Manifest,
)
from engines.directory.opening import open_directory
from engines.directory.progress import BuildProgress, silent
from engines.directory.tensor_file import TensorFile
from engines.directory.tied_file import TiedFile
from engines.errors import EngineDirectoryError
from engines.native import lowbit
from engines.native.layout import Layout
from maskgen.format.model_directory import CONFIG_FILE


@dataclass(frozen=True)
class CpuDirectory:
    """An open directory.

    Attributes:
        manifest: what it holds.
        config: the model's sizes.
        weights: the packed weights.
        complement: what the base mask drops, for masks that are loaded later.
        dense: packed weights of the dense model's other layers; None without a dense model.
    """

    manifest: Manifest
    config: DecoderConfig
    weights: LoadedTensors | TensorFile
    complement: TiedFile
    dense: LoadedTensors | TensorFile | None


def open_cpu_directory(
    directory: Path,
    *,
    verify: bool = True,
    map_weights: bool = False,
    progress: BuildProgress = silent,
) -> CpuDirectory:
    """Read and verify what the engine needs.

    Args:
        verify: compare the content of the files with what was built, and not their sizes alone;
            the complement's when it is first read.
        map_weights: map the weights instead of reading them into memory.
        progress: told how much has been read.

    Raises:
        EngineDirectoryError: the directory is malformed, damaged, or not for this engine.
    """
    packed = (ENGINE_WEIGHTS_FILE, DENSE_FILE)
    manifest = open_directory(
        directory,
        "cpu",
        verify=verify,
        required=(CONFIG_FILE, ENGINE_WEIGHTS_FILE),
        # Weights that are read into memory are verified there.
        later=(COMPLEMENT_FILE,) if map_weights else (COMPLEMENT_FILE, *packed),
        progress=progress,
    )
    _check_layout(directory, manifest.layout)
    _check_values(directory, manifest)
    # Before the weights are: a rebuild from here on is noticed when the complement is read.
    record = manifest.files.get(COMPLEMENT_FILE)
    complement = TiedFile(directory / COMPLEMENT_FILE, record, verify=verify)
    config = read_decoder_config(directory)

    def packed_weights(name: str) -> LoadedTensors | TensorFile:
        path, record = directory / name, manifest.files.get(name) if verify else None
        return TensorFile(path) if map_weights else LoadedTensors(path, record, progress)

    return CpuDirectory(
        manifest,
        config,
        packed_weights(ENGINE_WEIGHTS_FILE),
        complement,
        packed_weights(DENSE_FILE) if manifest.dense else None,
    )


def _check_layout(directory: Path, layout: LayoutRecord | None) -> None:
    if layout is None:
        return
    known = {each.name.lower(): version_of(each) for each in Layout if each.sparse}
    if known.get(layout.id) != layout.version:
        runs = ", ".join(f"{name} v{version}" for name, version in known.items())
        raise EngineDirectoryError(
            f"{directory} was packed in layout {layout.id} v{layout.version}, this twofour runs"
            f" {runs}: build the directory again"
        )


def _check_values(directory: Path, manifest: Manifest) -> None:
    found = manifest.quantisation
    if found is not None and found.version != lowbit.VERSION:
        raise EngineDirectoryError(
            f"{directory} has {found.values} values of version {found.version}, this twofour runs"
            f" {lowbit.VERSION}: build the directory again"
        )
    if manifest.layout is not None and manifest.layout.values != manifest.values:
        raise EngineDirectoryError(
            f"{directory}: the layout says {manifest.layout.values} values, the quantisation"
            f" {manifest.values}: build the directory again"
        )
