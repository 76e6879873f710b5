"""Which kernel serves which layer shape, and how masks would be kept, for reports."""

from __future__ import annotations

from pathlib import Path

from engines.cpu.model import CpuModel
from engines.cpu.storage_rule import storage_of
from engines.cpu.value_form import ValueForm, ValueForms, forms_of
from engines.directory.decoder_config import DecoderConfig, read_decoder_config
from engines.directory.manifest import ENGINE_WEIGHTS_FILE, read_manifest
from engines.directory.tensor_file import read_index
from engines.native import kernels
from engines.native.layout import Layout


def kernels_of(model: CpuModel) -> dict[str, str]:
    """Layer shape (`n x k`) -> values, pattern and kernel, for a loaded model."""
    found: dict[str, set[Layout]] = {}
    for layer in model.base:
        for weights in layer:
            found.setdefault(f"{weights.n} x {weights.k}", set()).add(weights.layout)
    return _described(found, model.config, model.head.layout, model.forms, model.isa)


def kernels_of_directory(directory: Path) -> dict[str, str]:
    """The same for an engine directory that is not loaded.

    Raises:
        EngineDirectoryError: it is malformed.
    """
    file = read_index(directory / ENGINE_WEIGHTS_FILE)
    config = read_decoder_config(directory)
    forms = forms_of(read_manifest(directory).quantisation)
    found: dict[str, set[Layout]] = {}
    for layer in range(config.layers):
        for linear in config.linears(layer):
            n, k = config.shape(linear)
            for layout in Layout:
                if f"{config.module(layer, linear)}.{layout.name.lower()}" in file:
                    found.setdefault(f"{n} x {k}", set()).add(layout)
    head = Layout[f"dense_{forms.tables.values}".upper()]
    return _described(found, config, head, forms, kernels.isa())


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


def _described(
    found: dict[str, set[Layout]], config: DecoderConfig, head: Layout, forms: ValueForms, isa: str
) -> dict[str, str]:
    masked = any(layout.sparse for layouts in found.values() for layout in layouts)
    named = {
        shape: _describe(layouts, forms.linears, isa, masked=masked)
        for shape, layouts in found.items()
    }
    shape = f"{config.vocab} x {config.hidden}"
    return named | {shape: f"{_kernel(head, forms.tables, isa)}: the output head"}


def _describe(layouts: set[Layout], form: ValueForm, isa: str, *, masked: bool) -> str:
    parts = [_kernel(layout, form, isa) for layout in sorted(layouts, key=lambda one: one.sparse)]
    if masked and any(not layout.sparse for layout in layouts):
        parts[0] += ": not listed by the mask"
    return "; ".join(reversed(parts))


def _kernel(layout: Layout, form: ValueForm, isa: str) -> str:
    name = kernels.kernel_name(layout, 1, isa)
    if not layout.lowbit:
        return f"{name} (bf16)"
    minima = " and a minimum" if form.minima else ""
    return f"{name} ({layout.values}, a scale{minima} per {form.block} inputs)"
