"""The digest that says which base model a mask belongs to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from maskgen.container import ContainerError, TensorEntry, read_header

_CHUNK_BYTES = 1 << 22


def base_digest(model_dir: Path) -> str:
    """Digest of a model: SHA-256 over its tensors' sorted names, dtypes, shapes and raw bytes.

    Independent of how the tensors are spread over files. Streams; needs 4 MiB of memory.

    Args:
        model_dir: a Hugging Face model directory with safetensors weights, sharded or not.

    Raises:
        OSError: the directory or a file in it does not exist.
        ValueError: a weight file is malformed, or the shards do not match their index.
    """
    found: dict[str, tuple[Path, TensorEntry]] = {}
    for path in weight_files(model_dir):
        with path.open("rb") as file:
            try:
                tensors = read_header(file).tensors
            except ContainerError as error:
                raise ValueError(f"{path} is not a safetensors file: {error}") from None
        if repeated := tensors.keys() & found.keys():
            raise ValueError(f"{path} repeats the tensor {min(repeated)} of another shard")
        found.update({name: (path, entry) for name, entry in tensors.items()})
    sha = hashlib.sha256()
    for name, (path, entry) in sorted(found.items()):
        shape = ",".join(str(size) for size in entry.shape)
        sha.update(f"{name}\n{entry.dtype}\n{shape}\n".encode())
        for chunk in _chunks(path, entry):
            sha.update(chunk)
    return sha.hexdigest()


def weight_files(model_dir: Path) -> list[Path]:
    """The safetensors files of a model directory, as its index names them.

    Raises:
        FileNotFoundError: there is no such directory, or it has no safetensors weights.
        ValueError: the index is malformed.
    """
    if not model_dir.is_dir():
        raise FileNotFoundError(f"there is no model directory {model_dir}")
    index = model_dir / "model.safetensors.index.json"
    if not index.is_file():
        single = model_dir / "model.safetensors"
        if not single.is_file():
            raise FileNotFoundError(
                f"{model_dir} has no model.safetensors (nor an index of shards)"
            )
        return [single]
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{index} is not an index of shards: {error!r}") from None
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ValueError(f"{index} names no shards, or shards outside its own directory")
    return [model_dir / name for name in sorted(names)]


def _chunks(path: Path, entry: TensorEntry) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(entry.start)
        left = entry.end - entry.start
        while left:
            chunk = file.read(min(left, _CHUNK_BYTES))
            if not chunk:
                raise ValueError(f"{path} became shorter while it was read")
            left -= len(chunk)
            yield chunk
