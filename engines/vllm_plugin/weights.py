"""Weights of a vLLM engine directory under any of its masks. Numpy until the last step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from engines.directory.manifest import COMPLEMENT_FILE, Manifest, read_manifest
from engines.directory.tensor_file import Array
from engines.directory.tied_file import TensorReader, TiedFile
from engines.errors import EngineDirectoryError, MaskError
from engines.mask_rules import read_fitting
from engines.native.layout import BF16
from engines.vllm_plugin.format import (
    CODES,
    DROPPED,
    KEPT,
    dense_values,
    kept_values,
    pack_nibbles,
    unpack_nibbles,
)
from engines.vllm_plugin.lowbit_format import BITMAP, LowbitForm, bitmap_of_codes
from maskgen.format.mask import Mask
from maskgen.format.model_directory import WEIGHTS_FILE
from maskgen.format.pattern import TWO_FOUR
from maskgen.format.placements import Codes, check_codes


class MaskedWeights:
    """The sparse layers of an engine directory, to be cut anew for another mask.

    Attributes:
        active: what the mask keeps that the engine runs now, as `read` gives it.

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
        self._cutter = _cutter(self._manifest)
        self._kept, self._complement = (
            TiedFile(directory / name, self._manifest.files.get(name))
            for name in (WEIGHTS_FILE, COMPLEMENT_FILE)
        )
        with self._kept.reading() as kept:
            ending = f".{self._cutter.part}"
            layers = [name.removesuffix(ending) for name in kept if name.endswith(ending)]
            try:
                self._default = {name: self._cutter.stored(kept, name) for name in layers}
            except ValueError as error:
                raise EngineDirectoryError(
                    f"{directory} is damaged ({error}): build it again"
                ) from error
        self._layers = tuple(self._default)
        self.active: Mapping[str, Array] = self._default

    def read(self, file: Path, digest: str) -> Mapping[str, Array]:
        """What the mask of a file keeps, checked against this engine: codes, or bitmaps.

        Raises:
            MaskError: the file is unreadable, has another digest than expected, belongs to another
                model or lists other layers; or the directory is sealed and this is another mask.
        """
        # Whether it fits beside the default mask was checked when it was loaded.
        manifest = self._manifest
        mask = read_fitting(file.name, file, "vllm", manifest.base_digest, None, manifest.values)
        if mask.digest != digest:
            raise MaskError(f"{file} has digest {mask.digest[:12]}..., expected {digest[:12]}...")
        if set(mask.codes) != set(self._layers):
            raise MaskError(f"{file} lists other layers than the engine's default mask")
        kept = {name: self._cutter.of_codes(codes, mask) for name, codes in mask.codes.items()}
        if manifest.sealed and self.differ(self._layers, kept):
            raise MaskError(
                f"{self._directory} is sealed: the values that its default mask drops were left"
                " out, so no other mask can be used; build it again without --sealed"
            )
        return kept

    def differ(self, names: Iterable[str], kept: Mapping[str, Array]) -> bool:
        """Whether `kept` differs from the active mask's in any of the named layers."""
        return any(not np.array_equal(kept[name], self.active[name]) for name in names)

    def values(
        self, names: Iterable[str], kept: Mapping[str, Array]
    ) -> dict[str, dict[str, torch.Tensor]]:
        """Layer name -> its tensors under another mask, whole, as in a checkpoint.

        Raises:
            EngineDirectoryError: a file was damaged or replaced.
        """
        with self._kept.reading() as weights, self._complement.reading() as complement:
            return {
                name: {
                    part: _tensor(array)
                    for part, array in self._cutter.cut(
                        weights, complement, name, self._default[name], kept[name]
                    ).items()
                }
                for name in names
            }


class _Cutter(Protocol):
    """Sparse layers of one form. `part` is the tensor that says what a layer keeps."""

    part: str

    def stored(self, weights: TensorReader, name: str) -> Array:
        """What the default mask keeps of a layer; ValueError where that is no mask's."""

    def of_codes(self, codes: Codes, mask: Mask) -> Array:
        """What a mask keeps of a layer."""

    def cut(
        self, weights: TensorReader, complement: TensorReader, name: str, old: Array, new: Array
    ) -> dict[str, Array]:
        """The tensors of a layer, stored for one mask, under another."""


class _Codes:
    """bf16: placement codes."""

    part = CODES

    def stored(self, weights: TensorReader, name: str) -> Array:
        packed = weights.tensor(f"{name}.{CODES}")
        codes = unpack_nibbles(packed, packed.shape[1] * 2)
        check_codes(codes, TWO_FOUR)
        return codes

    def of_codes(self, codes: Codes, mask: Mask) -> Array:
        return codes

    def cut(
        self, weights: TensorReader, complement: TensorReader, name: str, old: Array, new: Array
    ) -> dict[str, Array]:
        dropped = complement.tensor(f"{name}.{DROPPED}")
        dense = dense_values(weights.tensor(f"{name}.{KEPT}"), dropped, old)
        return {KEPT: kept_values(dense, new), CODES: pack_nibbles(new)}


class _Bitmaps:
    """int8 and int4: bitmaps."""

    part = BITMAP

    def __init__(self, form: LowbitForm) -> None:
        self._form = form

    def stored(self, weights: TensorReader, name: str) -> Array:
        return weights.tensor(f"{name}.{BITMAP}")

    def of_codes(self, codes: Codes, mask: Mask) -> Array:
        return bitmap_of_codes(codes, mask.pattern)

    def cut(
        self, weights: TensorReader, complement: TensorReader, name: str, old: Array, new: Array
    ) -> dict[str, Array]:
        parts = {p: weights.tensor(f"{name}.{p}") for p in self._form.parts(sparse=True)}
        return self._form.cut(parts, complement.tensor(f"{name}.{DROPPED}"), old, new)


def _cutter(manifest: Manifest) -> _Cutter:
    record = manifest.quantisation
    if record is None or record.values == "bf16":
        return _Codes()
    # What a layer keeps is half of its inputs whatever the pattern; nothing here depends on it.
    return _Bitmaps(LowbitForm(record.values, record.block, record.minima, TWO_FOUR))


def _tensor(array: Array) -> torch.Tensor:
    if array.dtype == BF16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array))
