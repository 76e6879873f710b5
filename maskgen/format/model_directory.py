"""What a Hugging Face model directory means: its weight files, its head, where its turns end.

Everything that reads such a directory asks here: the torch path, digests, masks, and every engine.
Needs neither torch nor transformers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskgen.format.container import ContainerError, TensorEntry, read_header
from maskgen.format.json_file import read_json

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

QUANTIZATION_KEYS = ("quantization_config", "compression_config", "sparsity_config")
"""Fields of config.json that say how weights are encoded; the last two are compressed-tensors'."""

_FILE_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
_COMPRESSED_TENSORS = "compressed-tensors"
_SMALL = 1 << 24  # weights that cost nothing to make room for
_CHUNK_BYTES = 1 << 22


class ModelDirectoryError(ValueError):
    """A model directory is missing, malformed, or holds what twofour cannot load."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor of a model lies."""

    file: Path
    entry: TensorEntry

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


@dataclass(frozen=True, slots=True)
class Quantization:
    """How a config.json says that weights are encoded.

    Attributes:
        method: `gptq`, `compressed-tensors`, ...
        sparse_only: 16- or 32-bit weights that compressed-tensors stored as 2:4.
    """

    method: str
    sparse_only: bool


def read_model_config(directory: Path) -> dict[str, Any]:
    """`config.json` of a directory whose weights are its safetensors files as they are.

    Raises:
        ModelDirectoryError: there is no such directory or no readable config.json; or the weights
            are quantised, an adapter's, or in a file of another name.
    """
    _require_directory(directory)
    config = read_json(directory / CONFIG_FILE, ModelDirectoryError)
    if (quantization := read_quantization(config, directory)) is not None:
        raise ModelDirectoryError(_quantization_message(directory, quantization))
    if (directory / "adapter_config.json").exists():
        raise ModelDirectoryError(
            f"{directory} has an adapter_config.json: merge the adapter into its base model"
            " (peft's merge_and_unload) and use the merged model"
        )
    if (other := config.get("transformers_weights")) is not None:
        raise ModelDirectoryError(
            f"{directory}: config.json names other weights (transformers_weights: {other!r:.80});"
            f" only {WEIGHTS_FILE} and {INDEX_FILE} are read"
        )
    return config


def read_quantization(config: Mapping[str, Any], directory: Path) -> Quantization | None:
    """What a config.json says about quantised or compressed weights; None if they are plain.

    Args:
        config: the content of config.json.
        directory: that it lies in, named in the message.

    Raises:
        ModelDirectoryError: a field that should say so is no object.
    """
    for key in QUANTIZATION_KEYS:
        fields = config.get(key)
        if not fields:
            continue
        if not isinstance(fields, dict):
            raise ModelDirectoryError(
                f"{directory / CONFIG_FILE}: {key} is {fields!r:.80}, expected an object"
            )
        method = " ".join(str(fields.get("quant_method") or _COMPRESSED_TENSORS).split())[:80]
        sparse_only = method == _COMPRESSED_TENSORS and not fields.get("config_groups")
        return Quantization(method, sparse_only)
    return None


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that hold the model's weights, sorted by name.

    `model.safetensors`, or the shards that `model.safetensors.index.json` names. With both of them
    transformers reads the first and vLLM the second, so they have to agree.

    Raises:
        ModelDirectoryError: there is no such directory, it has no safetensors weights, a shard is
            missing or outside the directory, or both kinds are present and disagree.
    """
    _require_directory(directory)
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


def end_token_ids(directory: Path, tokenizer_eos: int | None) -> tuple[int, ...]:
    """Tokens that end a turn: those of generation_config.json, and the tokenizer's own.

    vLLM's rule; transformers' `generate` takes the first alone. A base model that was tuned for
    chat often names its old end of text there and the end of a turn in the tokenizer. config.json
    counts where generation_config.json names none. Ids beyond its `vocab_size`, which the model
    can never answer, are left out.

    Args:
        directory: of a model, or an engine directory.
        tokenizer_eos: id of the tokenizer's `eos_token`.

    Raises:
        ModelDirectoryError: a file is malformed, or `eos_token_id` is neither a token id nor a
            list of them.
    """
    files = [directory / name for name in ("generation_config.json", CONFIG_FILE)]
    found = {path: read_json(path, ModelDirectoryError) for path in files if path.is_file()}
    named = (_token_ids(path, fields.get("eos_token_id")) for path, fields in found.items())
    first = next((ids for ids in named if ids), ())
    own = () if tokenizer_eos is None else (tokenizer_eos,)
    vocabulary = found.get(files[1], {}).get("vocab_size")
    stray = vocabulary if isinstance(vocabulary, int) else math.inf
    return tuple(token for token in dict.fromkeys(first + own) if token < stray)


def _require_directory(directory: Path) -> None:
    if not directory.is_dir():
        raise ModelDirectoryError(f"there is no model directory {directory}")


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


def _quantization_message(directory: Path, quantization: Quantization) -> str:
    if quantization.sparse_only:
        return (
            f"{directory} holds compressed 2:4 weights ({quantization.method}); run"
            f" `twofour import {directory} --out NEW` and use NEW/model"
        )
    if quantization.method == "twofour":
        return (
            f"{directory} is an engine directory that twofour built for vLLM; use the model that it"
            " was built from"
        )
    return (
        f"{directory} is quantised ({quantization.method}); use the bf16, f16 or f32 model that it"
        " was made from"
    )


def _shown(name: str) -> str:
    """A name from a file, fit for a message."""
    return name if len(name) <= 200 and name.isprintable() else f"{name!r:.200}"


def _token_ids(path: Path, value: Any) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    # type() and not isinstance(): True is an int, and is no token.
    if not all(type(item) is int for item in ids):
        raise ModelDirectoryError(
            f"{path}: eos_token_id is {value!r:.100}, expected a token id or a list of them"
        )
    return tuple(item for item in ids if item >= 0)  # some write -1 for none


def _equal(left: StoredTensor, right: StoredTensor) -> bool:
    if (left.entry.dtype, left.entry.shape) != (right.entry.dtype, right.entry.shape):
        return False
    return all(a == b for a, b in zip(left.chunks(), right.chunks(), strict=True))
