"""The files of a model directory that a copy of it needs."""

from __future__ import annotations

from pathlib import Path

from maskgen.format.text_files import text_files
from maskgen.format.weight_files import files_of_weights

_OTHER_WEIGHTS = frozenset(
    (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx")
)


def checkpoint_files(directory: Path) -> list[Path]:
    """Weights, what its texts depend on, and what else lies beside them, such as a licence.

    Left out are hidden files, folders, and other sets of weights: they would be those of the
    original in a copy that is to have others.

    Raises:
        ModelDirectoryError: see `maskgen.format.weight_files.weight_files`.
    """
    needed = [*files_of_weights(directory), *text_files(directory)]
    beside = (
        path
        for path in directory.iterdir()
        if path.is_file()
        and not path.name.startswith(".")
        and path.suffix not in _OTHER_WEIGHTS
        and not path.name.endswith(".index.json")
    )
    return sorted({*needed, *beside})
