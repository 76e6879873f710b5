"""The digest that says which base model a mask belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from maskgen.format.container import TensorEntry
from maskgen.format.weight_files import stored_tensors


def base_digest(model_dir: Path) -> str:
    """Digest of a model: SHA-256 over its tensors' sorted names, dtypes, shapes and raw bytes.

    Independent of how the tensors are spread over files. Streams; needs 4 MiB of memory.

    Args:
        model_dir: a Hugging Face model directory with safetensors weights, sharded or not.

    Raises:
        ModelDirectoryError: see `maskgen.format.weight_files.stored_tensors`.
    """
    stored = stored_tensors(model_dir)
    return tensors_digest((name, item.entry, item.chunks()) for name, item in stored.items())


def tensors_digest(tensors: Iterable[tuple[str, TensorEntry, Iterable[bytes | memoryview]]]) -> str:
    """The digest of a model with these tensors: name, type and shape, raw bytes."""
    sha = hashlib.sha256()
    for name, entry, chunks in sorted(tensors, key=lambda tensor: tensor[0]):
        shape = ",".join(str(size) for size in entry.shape)
        sha.update(f"{name}\n{entry.dtype}\n{shape}\n".encode())
        for chunk in chunks:
            sha.update(chunk)
    return sha.hexdigest()
