"""The weights of a model directory: which files hold them, and where each tensor lies.

Headers alone are read. Needs neither torch nor transformers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from maskgen.format.container import ContainerError, TensorBytes, TensorEntry, read_header
from maskgen.format.json_file import read_json
from maskgen.format.model_directory import (
    INDEX_FILE,
    WEIGHTS_FILE,
    ModelDirectoryError,
    require_directory,
)

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

_FILE_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
_SMALL = 1 << 24  # weights that cost nothing to make room for
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor of a model lies."""

    file: Path
    entry: TensorEntry

    @property
    def source(self) -> TensorBytes:
        """Its type, shape and bytes, to be copied."""
        return TensorBytes(self.entry.dtype, self.entry.shape, self.chunks)

    def chunks(self) -> Iterator[bytes]:
        """The raw bytes, at most 4 MiB at a time.

        Raises:
            ModelDirectoryError: the file became shorter.
        """
        with self.file.open("rb") as file:
            file.seek(self.entry.start)
            left = self.entry.end - self.entry.start
            while left:
                chunk = file.read(min(left, _CHUNK_BYTES))
                if not chunk:
                    raise ModelDirectoryError(f"{self.file} became shorter while it was read")
                left -= len(chunk)
                yield chunk


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that hold the model's weights, sorted by name.

    `model.safetensors`, or the shards that `model.safetensors.index.json` names. With both of them
    transformers reads the first and vLLM the second, so they have to agree.

    Raises:
        ModelDirectoryError: there is no such directory, it has no safetensors weights, a shard is
            missing or outside the directory, or both kinds are present and disagree.
    """
    require_directory(directory)
    single, index = directory / WEIGHTS_FILE, directory / INDEX_FILE
    if not index.is_file():
        if single.is_file():
            return [single]
        raise ModelDirectoryError(_no_weights_message(directory))
    shards = sorted(set(_weight_map(index).values()))
    if single.is_file() and shards != [WEIGHTS_FILE]:
        raise ModelDirectoryError(
            f"{directory} has {WEIGHTS_FILE} and an index of other files ({shards[0]}, ...):"
            " two sets of weights; delete the one that is out of date"
        )
    for name in shards:
        if not (directory / name).is_file():
            raise ModelDirectoryError(f"{index} names {name}, which is missing")
    return [directory / name for name in shards]


def files_of_weights(directory: Path) -> list[Path]:
    """The files that hold the model's weights, and the index that names them if there is one.

    Raises:
        ModelDirectoryError: as `weight_files`.
    """
    index = directory / INDEX_FILE
    return [*weight_files(directory), *([index] if index.is_file() else [])]


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of the model, by name. Reads headers only.

    Raises:
        ModelDirectoryError: as `weight_files`; or a file is malformed, a tensor is in two files, or
            one that the index names is in none.
    """
    found: dict[str, StoredTensor] = {}
    for path in weight_files(directory):
        try:
            with path.open("rb") as file:
                entries = read_header(file).tensors
        except ContainerError as error:
            raise ModelDirectoryError(f"{path} is not a safetensors file: {error}") from None
        except OSError as error:
            raise ModelDirectoryError(f"{path} cannot be read: {error.strerror}") from None
        if repeated := entries.keys() & found.keys():
            raise ModelDirectoryError(
                f"{path} repeats the tensor {_shown(min(repeated))} of another weight file"
            )
        found.update({name: StoredTensor(path, entry) for name, entry in entries.items()})
    index = directory / INDEX_FILE
    if index.is_file() and (lost := _weight_map(index).keys() - found.keys()):
        raise ModelDirectoryError(
            f"{index} names the tensor {_shown(min(lost))}, which no file holds"
        )
    return found


def embedding_and_head(
    tensors: Mapping[str, StoredTensor], *, tied: bool | None
) -> tuple[str, str]:
    """Which stored tensors are a decoder's embedding and its output head; the same name if tied.

    The rule of transformers 5: where config.json ties the two and the files hold both, they are
    tied only if they are equal; where the files hold one, it serves as both.

    Args:
        tensors: as `stored_tensors` gives them.
        tied: the configuration's `tie_word_embeddings`.
    """
    if not tied:
        return EMBEDDING, HEAD
    if EMBEDDING in tensors and HEAD in tensors:
        return EMBEDDING, EMBEDDING if _equal(tensors[EMBEDDING], tensors[HEAD]) else HEAD
    only = HEAD if HEAD in tensors else EMBEDDING
    return only, only


def refuse_other_weights(
    directory: Path, missing: Collection[str], unexpected: Collection[str]
) -> None:
    """Raise ModelDirectoryError unless the files hold the model's tensors, no more and no fewer.

    A loader would fill missing tensors with random numbers and leave others out.

    Args:
        directory: named in the message.
        missing: tensors of the architecture that no file holds.
        unexpected: tensors of the files that the architecture has not.
    """
    if not missing and not unexpected:
        return
    parts = [
        f"{len(names)} {what}, such as {_shown(min(names))}"
        for what, names in (("are missing", missing), ("do not belong to it", unexpected))
        if names
    ]
    raise ModelDirectoryError(
        f"the weights in {directory} are not those of the model that config.json describes: of"
        f" its tensors {' and '.join(parts)}"
    )


def refuse_other_size(
    directory: Path, stored: Mapping[str, StoredTensor], *, layers: object = 0, weights: int = 0
) -> None:
    """Raise ModelDirectoryError if config.json describes a far larger model than the files hold.

    transformers makes room for weights that are missing or have another shape: a damaged size in
    config.json would take all memory, or all time, before anything is compared.

    Args:
        directory: named in the message.
        stored: as `stored_tensors` gives them.
        layers: decoder layers that config.json says.
        weights: parameters of the model that it describes.
    """
    if isinstance(layers, int) and layers > len(stored):
        raise ModelDirectoryError(
            f"{directory}: config.json says {layers:,} decoder layers, the files hold"
            f" {len(stored):,} tensors"
        )
    held = sum(math.prod(tensor.entry.shape) for tensor in stored.values())
    if weights > 2 * held + _SMALL:
        raise ModelDirectoryError(
            f"{directory}: config.json describes a model of {weights:,} weights, the files hold"
            f" {held:,}"
        )


def _weight_map(index: Path) -> dict[str, str]:
    shards = read_json(index, ModelDirectoryError).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ModelDirectoryError(f"{index} is not an index of shards: it has no weight_map")
    for name in shards.values():
        if not isinstance(name, str) or Path(name).name != name or not _FILE_NAME.fullmatch(name):
            raise ModelDirectoryError(
                f"{index} names a file outside its own directory: {name!r:.80}"
            )
    return shards


def _no_weights_message(directory: Path) -> str:
    message = f"{directory} has neither {WEIGHTS_FILE} nor {INDEX_FILE}"
    if next(directory.glob("pytorch_model*.bin"), None) is None:
        return message
    return (
        f"{message}: its pytorch_model.bin is pickled, and twofour never unpickles; save it with"
        " save_pretrained of transformers 5, which writes safetensors"
    )


def _shown(name: str) -> str:
    """A name from a file, fit for a message."""
    return name if len(name) <= 200 and name.isprintable() else f"{name!r:.200}"


def _equal(left: StoredTensor, right: StoredTensor) -> bool:
    if (left.entry.dtype, left.entry.shape) != (right.entry.dtype, right.entry.shape):
        return False
    return all(a == b for a, b in zip(left.chunks(), right.chunks(), strict=True))
