"""Weights of a vLLM engine directory under any of its masks. Numpy until the last step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from engines.directory.manifest import COMPLEMENT_FILE, read_manifest
from engines.directory.tied_file import TiedFile
from engines.errors import EngineDirectoryError, MaskError
from engines.mask_rules import read_fitting
from engines.vllm_plugin.format import (
    CODES,
    DROPPED,
    KEPT,
    dense_values,
    kept_values,
    pack_nibbles,
    unpack_nibbles,
)
from maskgen.format.model_directory import WEIGHTS_FILE
from maskgen.format.pattern import TWO_FOUR
from maskgen.format.placements import Codes, check_codes


class MaskedWeights:
    """The sparse layers of an engine directory, to be cut anew for another mask.

    Attributes:
        active: codes of the mask that the engine runs now.

    Args:
        directory: the engine directory.
        identity: `Manifest.identity` of the one that the engine's weights came from.

    Raises:
        EngineDirectoryError: the directory is no engine directory, or damaged.
        MaskError: it was rebuilt since.
    """

    def __init__(self, directory: Path, identity: str) -> None:
        self._directory = directory
        self._manifest = read_manifest(directory)
        if self._manifest.identity != identity:
            raise MaskError(
                f"{directory} was rebuilt since the engine opened it: start the engine again"
            )
        self._kept, self._complement = (
            TiedFile(directory / name, self._manifest.files.get(name))
            for name in (WEIGHTS_FILE, COMPLEMENT_FILE)
        )
        with self._kept.reading() as kept:
            names = [name for name in kept if name.endswith(f".{CODES}")]
            self._default = {
                name.removesuffix(f".{CODES}"): _unpack(directory, name, kept.tensor(name))
                for name in names
            }
        self._layers = tuple(self._default)
        self.active: Mapping[str, Codes] = self._default

    def read(self, file: Path, digest: str) -> Mapping[str, Codes]:
        """Codes of a mask file, checked against this engine.

        Raises:
            MaskError: the file is unreadable, has another digest than expected, belongs to another
                model or lists other layers; or the directory is sealed and this is another mask.
        """
        # Whether it fits beside the default mask was checked when it was loaded.
        mask = read_fitting(file.name, file, "vllm", self._manifest.base_digest, None)
        if mask.digest != digest:
            raise MaskError(f"{file} has digest {mask.digest[:12]}..., expected {digest[:12]}...")
        if set(mask.codes) != set(self._layers):
            raise MaskError(f"{file} lists other layers than the engine's default mask")
        if self._manifest.sealed and self.differ(self._layers, mask.codes):
            raise MaskError(
                f"{self._directory} is sealed: the values that its default mask drops were left"
                " out, so no other mask can be used; build it again without --sealed"
            )
        return mask.codes

    def differ(self, names: Iterable[str], codes: Mapping[str, Codes]) -> bool:
        """Whether `codes` differ from the active mask's in any of the named layers."""
        return any(not np.array_equal(codes[name], self.active[name]) for name in names)

    def values(
        self, names: Iterable[str], codes: Mapping[str, Codes]
    ) -> dict[str, dict[str, torch.Tensor]]:
        """Layer name -> its "kept" and "codes" tensors under `codes`, whole, as in a checkpoint.

        Raises:
            EngineDirectoryError: a file was damaged or replaced.
        """
        found = {}
        with self._kept.reading() as kept_file, self._complement.reading() as complement:
            for name in names:
                dense = dense_values(
                    kept_file.tensor(f"{name}.{KEPT}"),
                    complement.tensor(f"{name}.{DROPPED}"),
                    self._default[name],
                )
                kept = kept_values(dense, codes[name])
                found[name] = {
                    KEPT: torch.from_numpy(kept.view(np.uint16)).view(torch.bfloat16),
                    CODES: torch.from_numpy(pack_nibbles(codes[name])),
                }
        return found


def _unpack(directory: Path, name: str, packed: npt.NDArray[np.uint8]) -> Codes:
    codes = unpack_nibbles(packed, packed.shape[1] * 2)
    try:
        check_codes(codes, TWO_FOUR)
    except ValueError as error:
        raise EngineDirectoryError(
            f"{directory}: {name} is damaged ({error}): build the directory again"
        ) from error
    return codes
