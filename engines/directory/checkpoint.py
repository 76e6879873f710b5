"""Hugging Face model directories, read tensor by tensor from mapped files, without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from engines.directory.families import FAMILIES
from engines.directory.tensor_file import TensorFile, TensorSpec
from engines.errors import EngineDirectoryError, as_engine_directory_error
from maskgen.format.json_file import read_json
from maskgen.format.model_directory import CONFIG_FILE, ModelDirectoryError, read_model_config
from maskgen.format.weight_files import (
    EMBEDDING,
    HEAD,
    embedding_and_head,
    refuse_other_weights,
    stored_tensors,
)

_NO_WEIGHTS = ".rotary_emb.inv_freq"
_FLOATS = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


def _tied_if_silent(config: Mapping[str, Any]) -> bool:
    kind = config.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    return family is not None and bool(family.defaults["tie_word_embeddings"])


class Checkpoint:
    """A model directory: `config.json` and safetensors files, sharded or not.

    It holds a head exactly if the model has one of its own, and an embedding always, whichever of
    the two a file stores for both.

    Args:
        directory: of the model.
        encoded: take weights that are quantised or compressed, too; the caller decodes them.

    Attributes:
        config: `config.json`, with the `tie_word_embeddings` that the tensors show where it ties
            head and embedding.

    Raises:
        EngineDirectoryError: a file is missing, malformed or truncated, or the weights are encoded.
    """

    def __init__(self, directory: Path, *, encoded: bool = False) -> None:
        self.directory = directory
        with as_engine_directory_error():
            stored = stored_tensors(directory)
            read = (
                read_json(directory / CONFIG_FILE, ModelDirectoryError)
                if encoded
                else read_model_config(directory)
            )
            tied = bool(read.get("tie_word_embeddings", _tied_if_silent(read)))
            embedding, head = embedding_and_head(stored, tied=tied)
        self.config = read | ({"tie_word_embeddings": embedding == head} if tied else {})
        files = {path: TensorFile(path) for path in {tensor.file for tensor in stored.values()}}
        self._stored = {name: (files[tensor.file], name) for name, tensor in stored.items()}
        if tied and embedding == head and head in stored:
            self._stored.pop(HEAD, None)
            self._stored[EMBEDDING] = (files[stored[head].file], head)

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def spec(self, name: str) -> TensorSpec:
        """Type and shape of a tensor, without reading it."""
        file, stored = self._find(name)
        return file.spec(stored)

    def tensor(self, name: str) -> npt.NDArray[Any]:
        """A view of the mapped tensor, in the type it is stored in (bf16, f16 or f32).

        Raises:
            EngineDirectoryError: there is no such tensor, or its type is not one of these.
        """
        spec = self.spec(name)
        if spec.dtype not in _FLOATS:
            raise EngineDirectoryError(
                f"{self.directory}: {name} is {spec.dtype}; bf16, f16 and f32 are supported"
            )
        return self.raw(name)

    def raw(self, name: str) -> npt.NDArray[Any]:
        """A view of the mapped tensor, whatever its type.

        Raises:
            EngineDirectoryError: there is no such tensor.
        """
        file, stored = self._find(name)
        return file.tensor(stored)

    def release(self, name: str) -> None:
        """Give a tensor's resident pages back once it has been used."""
        file, stored = self._find(name)
        file.release(stored)

    def check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Raise EngineDirectoryError unless the tensors are these, and have these shapes.

        The rotary frequencies that old checkpoints store are no weights, and pass.
        """
        check_shapes(self.directory, {name: self.spec(name).shape for name in self}, expected)

    def _find(self, name: str) -> tuple[TensorFile, str]:
        try:
            return self._stored[name]
        except KeyError:
            raise EngineDirectoryError(f"{self.directory} holds no tensor {name!r}") from None


def check_shapes(
    place: Path, stored: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Raise EngineDirectoryError unless the tensors that `place` holds are the expected ones."""
    found = {name for name in stored if not name.endswith(_NO_WEIGHTS)}
    with as_engine_directory_error():
        refuse_other_weights(place, expected.keys() - found, found - expected.keys())
    for name, shape in expected.items():
        if stored[name] != shape:
            raise EngineDirectoryError(
                f"{place}: {name} has shape {stored[name]}, config.json says {shape}"
            )
