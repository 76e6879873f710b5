"""The digest that says which base model a mask belongs to."""

from __future__ import annotations

import hashlib
from pathlib import Path

from maskgen.format.model_directory import stored_tensors


def base_digest(model_dir: Path) -> str:
    """Digest of a model: SHA-256 over its tensors' sorted names, dtypes, shapes and raw bytes.

    Independent of how the tensors are spread over files. Streams; needs 4 MiB of memory.

    Args:
        model_dir: a Hugging Face model directory with safetensors weights, sharded or not.

    Raises:
        ModelDirectoryError: see `maskgen.format.model_directory.stored_tensors`.
    """
    sha = hashlib.sha256()
    for name, tensor in sorted(stored_tensors(model_dir).items()):
        shape = ",".join(str(size) for size in tensor.entry.shape)
        sha.update(f"{name}\n{tensor.entry.dtype}\n{shape}\n".encode())
        for chunk in tensor.chunks():
            sha.update(chunk)
    return sha.hexdigest()
