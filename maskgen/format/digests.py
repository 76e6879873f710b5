"""The digest that says which base model a mask belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from maskgen.format.container import TensorBytes
from maskgen.format.weight_files import stored_tensors


def base_digest(model_dir: Path) -> str:
    """Digest of a model: SHA-256 over its tensors' sorted names, dtypes, shapes and raw bytes.

    Independent of how the tensors are spread over files. Streams; needs 4 MiB of memory.

    Args:
        model_dir: a Hugging Face model directory with safetensors weights, sharded or not.

    Raises:
        ModelDirectoryError: see `maskgen.format.weight_files.stored_tensors`.
    """
    return tensors_digest({name: item.source for name, item in stored_tensors(model_dir).items()})


def tensors_digest(tensors: Mapping[str, TensorBytes]) -> str:
    """The digest of a model with these tensors."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        shape = ",".join(str(size) for size in tensor.shape)
        sha.update(f"{name}\n{tensor.dtype}\n{shape}\n".encode())
        for chunk in tensor.chunks():
            sha.update(chunk)
    return sha.hexdigest()
