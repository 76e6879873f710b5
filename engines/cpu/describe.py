"""Which kernel serves which layer shape, and how masks would be kept, for reports."""

from __future__ import annotations

from pathlib import Path

from engines.cpu.model import CpuModel
from engines.cpu.storage_rule import storage_of
from engines.directory.decoder_config import LINEARS, read_decoder_config
from engines.directory.manifest import ENGINE_WEIGHTS_FILE, read_manifest
from engines.directory.tensor_file import read_index
from engines.native import kernels
from engines.native.layout import Layout


def kernels_of(model: CpuModel) -> dict[str, str]:
    """Layer shape (`n x k`) -> kernel, for a loaded model."""
    found: dict[str, set[Layout]] = {}
    for layer in model.base:
        for weights in layer:
            found.setdefault(f"{weights.n} x {weights.k}", set()).add(weights.layout)
    named = {shape: _describe(layouts) for shape, layouts in found.items()}
    head = f"{model.config.vocab} x {model.config.hidden}"
    return named | {head: f"{kernels.kernel_name(Layout.DENSE_BF16, 1)}: the output head"}


def kernels_of_directory(directory: Path) -> dict[str, str]:
    """The same for an engine directory that is not loaded.

    Raises:
        EngineDirectoryError: it is malformed.
    """
    file = read_index(directory / ENGINE_WEIGHTS_FILE)
    config = read_decoder_config(directory)
    found: dict[str, set[Layout]] = {}
    for layer in range(config.layers):
        for linear in LINEARS:
            n, k = config.shape(linear)
            for layout in Layout:
                if f"{config.module(layer, linear)}.{layout.name.lower()}" in file:
                    found.setdefault(f"{n} x {k}", set()).add(layout)
    named = {shape: _describe(layouts) for shape, layouts in found.items()}
    head = f"{config.vocab} x {config.hidden}"
    return named | {head: f"{kernels.kernel_name(Layout.DENSE_BF16, 1)}: the output head"}


def storage_of_directory(directory: Path) -> dict[str, str]:
    """Mask beside the base -> how an engine would keep it unless it is told otherwise, and why.

    Raises:
        EngineDirectoryError: it is malformed.
    """
    manifest = read_manifest(directory)
    return {
        mask.name: "{}: {}".format(*storage_of(mask.changed_share, mask.storage))
        for mask in manifest.masks
        if mask.name != manifest.default_mask
    }


def _describe(layouts: set[Layout]) -> str:
    parts = [kernels.kernel_name(layout, 1) for layout in sorted(layouts)]
    if Layout.DENSE_BF16 in layouts:
        parts[-1] += ": not listed by the mask"
    return "; ".join(parts)
