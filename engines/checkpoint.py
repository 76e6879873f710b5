"""Hugging Face model directories, read tensor by tensor from mapped files, without torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from engines.errors import EngineDirectoryError, as_engine_directory_error
from engines.tensorfile import TensorFile, TensorSpec
from maskgen.format.model_directory import (
    CONFIG_FILE,
    read_json,
    read_model_config,
    stored_tensors,
)

_FLOATS = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


class Checkpoint:
    """A model directory: `config.json` and safetensors files, sharded or not.

    Args:
        directory: of the model.
        encoded: take weights that are quantised or compressed, too; the caller decodes them.

    Raises:
        EngineDirectoryError: a file is missing, malformed or truncated, or the weights are encoded.
    """

    def __init__(self, directory: Path, *, encoded: bool = False) -> None:
        self.directory = directory
        with as_engine_directory_error():
            stored = stored_tensors(directory)
            read = read_json(directory / CONFIG_FILE) if encoded else read_model_config(directory)
        self.config = read
        files = {path: TensorFile(path) for path in {tensor.file for tensor in stored.values()}}
        self._files = {name: files[tensor.file] for name, tensor in stored.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def spec(self, name: str) -> TensorSpec:
        """Type and shape of a tensor, without reading it."""
        return self._file(name).spec(name)

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
        return self._file(name).tensor(name)

    def release(self, name: str) -> None:
        """Give a tensor's resident pages back once it has been used."""
        self._file(name).release(name)

    def _file(self, name: str) -> TensorFile:
        try:
            return self._files[name]
        except KeyError:
            raise EngineDirectoryError(f"{self.directory} holds no tensor {name!r}") from None
