"""Hugging Face model directories, read tensor by tensor from mapped files, without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from engines.errors import EngineDirectoryError
from engines.tensorfile import TensorFile, TensorSpec

_FLOATS = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


class Checkpoint:
    """A model directory: `config.json` and safetensors files, sharded or not.

    Raises:
        EngineDirectoryError: a file is missing, malformed or truncated.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        if not directory.is_dir():
            raise EngineDirectoryError(f"{directory} is no model directory")
        self.config = _read_object(directory / "config.json")
        self._files: dict[str, TensorFile] = {}
        for path in _weight_files(directory):
            file = TensorFile(path)
            self._files |= dict.fromkeys(file, file)

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


def _weight_files(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        shards = _read_object(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise EngineDirectoryError(f"{index} has no weight_map")
        names = sorted({str(shard) for shard in shards.values()})
        if any("/" in name or name.startswith("..") for name in names):
            raise EngineDirectoryError(f"{index} names a file outside the model directory")
        return [directory / name for name in names]
    single = directory / "model.safetensors"
    if not single.is_file():
        raise EngineDirectoryError(
            f"{directory} has neither model.safetensors nor model.safetensors.index.json"
        )
    return [single]


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise EngineDirectoryError(f"{path} is missing")
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise EngineDirectoryError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise EngineDirectoryError(f"{path} holds {type(value).__name__}, expected an object")
    return value
