"""The masks of a vLLM engine directory, by name, and what the directory says about itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engines.base import MaskInfo
from engines.directory.build import changed_share
from engines.directory.checkpoint import Checkpoint
from engines.directory.manifest import NAME_PATTERN, Manifest
from engines.errors import MaskError, UnknownMaskError
from engines.vllm_plugin.format import CODES, COLUMN_STEP, parse_spec
from maskgen.format.mask_file import Mask, MaskFileError, read_mask


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
        weight_bytes: of the checkpoint's tensors.
        identity: `Manifest.identity` of the directory.

    Raises:
        EngineDirectoryError: the directory is malformed.
    """

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self._manifest = manifest
        self.identity = manifest.identity
        checkpoint = Checkpoint(directory, encoded=True)
        self._spec = parse_spec(checkpoint.config["quantization_config"])
        self._entries = {
            m.name: Entry(directory / m.file, m.digest, m.domain, m.changed_share)
            for m in manifest.masks
        }
        self.shapes = {
            name: (checkpoint.spec(f"{name}.{CODES}").shape[0], k * COLUMN_STEP)
            for name in self._spec.sparse_layers
            for k in (checkpoint.spec(f"{name}.{CODES}").shape[1],)
        }
        self.weight_bytes = sum(checkpoint.spec(name).nbytes for name in checkpoint)

    def resolve(self, name: str | None) -> str | None:
        """The mask of a request; the default one if it names none.

        Raises:
            UnknownMaskError: no such mask.
        """
        if name is None:
            return self._manifest.default_mask
        if name not in self._entries:
            raise UnknownMaskError(f"no mask named {name!r} is loaded", param="model")
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
        if not re.fullmatch(NAME_PATTERN, name):
            raise MaskError(f"mask name {name!r} must be letters, digits, '.', '_' or '-'")
        if name in self._entries:
            raise MaskError(f"a mask named {name!r} is loaded already")
        default = self._manifest.default_mask
        if default is None:
            raise MaskError("this engine is dense: it was built without a mask, and takes none")
        if self._manifest.sealed:
            raise MaskError("this engine directory is sealed; build it again without --sealed")
        mask, base = self._read(path), self._read(self._entries[default].file)
        if mask.base_digest != self._manifest.base_digest:
            raise MaskError(f"{path} was made for another base model")
        if mask.shapes != base.shapes:
            raise MaskError(f"{path} lists other layers than the engine's default mask")
        self._entries[name] = Entry(path, mask.digest, mask.domain, changed_share(mask, base))

    def unload(self, name: str) -> None:
        """Forget a mask.

        Raises:
            UnknownMaskError: no such mask.
            MaskError: it is the default mask.
        """
        if name not in self._entries:
            raise UnknownMaskError(f"no mask named {name!r} is loaded")
        if name == self._manifest.default_mask:
            raise MaskError(f"{name!r} is the default mask and cannot be unloaded")
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

    @staticmethod
    def _read(path: Path) -> Mask:
        try:
            return read_mask(path)
        except (MaskFileError, OSError) as error:
            raise MaskError(f"{path}: {error}") from error
