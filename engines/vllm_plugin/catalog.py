"""The masks of a vLLM engine directory, by name, and what the directory says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engines.base import MaskInfo
from engines.directory.build import changed_share
from engines.directory.checkpoint import Checkpoint
from engines.directory.manifest import Manifest
from engines.errors import as_engine_directory_error
from engines.mask_rules import (
    MaskedLayers,
    check_load,
    check_requested,
    check_unload,
    read_fitting,
)
from engines.native.layout import sparse_layout
from engines.vllm_plugin.format import CODES, COLUMN_STEP, parse_spec
from engines.vllm_plugin.lowbit_format import BITMAP
from maskgen.format.pattern import Pattern


@dataclass(frozen=True)
class Entry:
    """A mask that requests may name."""

    file: Path
    digest: str
    domain: str
    changed_share: float


class MaskCatalog:
    """Names, files and digests of the masks; knows nothing of vLLM.

    Attributes:
        shapes: (outputs, inputs) of the sparse layers.
        layout: of sparse layers, where the device has kernels of ours.
        weight_bytes: of the checkpoint's tensors.
        identity: `Manifest.identity` of the directory.

    Raises:
        EngineDirectoryError: the directory is malformed.
    """

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self._manifest = manifest
        self.identity = manifest.identity
        checkpoint = Checkpoint(directory, encoded=True)
        with as_engine_directory_error(directory):
            self._spec = parse_spec(checkpoint.config.get("quantization_config"))
        self._entries = {
            m.name: Entry(directory / m.file, m.digest, m.domain, m.changed_share)
            for m in manifest.masks
        }
        # A byte of codes and one of a bitmap cover equally many inputs.
        part = CODES if self._spec.values == "bf16" else BITMAP
        self.shapes = {
            name: (n, columns * COLUMN_STEP)
            for name in self._spec.sparse_layers
            for n, columns in (checkpoint.spec(f"{name}.{part}").shape,)
        }
        self.layout = sparse_layout(Pattern.parse(self._spec.pattern), self._spec.values)
        self.weight_bytes = sum(checkpoint.spec(name).nbytes for name in checkpoint)

    def resolve(self, name: str | None) -> str | None:
        """The mask of a request; the default one if it names none.

        Raises:
            UnknownMaskError: no such mask.
        """
        if name is None:
            return self._manifest.default_mask
        check_requested(name, self._entries)
        return name

    def entry(self, name: str) -> Entry:
        """The entry of a mask that `resolve` accepted."""
        return self._entries[name]

    def digest(self, name: str | None) -> str | None:
        """Digest of a mask; None for the dense model."""
        return None if name is None else self._entries[name].digest

    def load(self, name: str, path: Path) -> None:
        """Add a mask file.

        Raises:
            MaskError: the name is taken or malformed, the file is unreadable or belongs elsewhere,
                or the directory is sealed.
        """
        check_load(name, self._entries, self._manifest.default_mask, self._manifest.sealed)
        assert self._manifest.default_mask is not None  # check_load
        default = self._entries[self._manifest.default_mask]
        digest = self._manifest.base_digest
        values = self._spec.values
        base = read_fitting(self._manifest.default_mask, default.file, "vllm", digest, None, values)
        mask = read_fitting(name, path, "vllm", digest, MaskedLayers.of(base), values)
        self._entries[name] = Entry(path, mask.digest, mask.domain, changed_share(mask, base))

    def unload(self, name: str) -> None:
        """Forget a mask.

        Raises:
            UnknownMaskError: no such mask.
            MaskError: it is the default mask.
        """
        check_unload(name, self._entries, self._manifest.default_mask)
        del self._entries[name]

    def infos(self, pinned: Mapping[str | None, int], active: str | None) -> tuple[MaskInfo, ...]:
        """What `Engine.describe` says about the masks; only the active one takes memory."""
        return tuple(
            MaskInfo(
                name=name,
                digest=entry.digest,
                domain=entry.domain,
                storage="base" if name == active else "patch",
                changed_share=entry.changed_share,
                pinned=pinned.get(name, 0),
            )
            for name, entry in self._entries.items()
        )
