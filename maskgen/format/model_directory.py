"""What a Hugging Face model directory means: its weight files, its head, where its turns end.

Everything that reads such a directory asks here: the torch path, digests, masks, and every engine.
Needs neither torch nor transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskgen.format.json_file import read_json

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

QUANTIZATION_KEYS = ("quantization_config", "compression_config", "sparsity_config")
"""Fields of config.json that say how weights are encoded; the last two are compressed-tensors'."""

_COMPRESSED_TENSORS = "compressed-tensors"


class ModelDirectoryError(ValueError):
    """A model directory is missing, malformed, or holds what twofour cannot load."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """How a config.json says that weights are encoded.

    Attributes:
        method: `gptq`, `compressed-tensors`, ...
        sparse_only: 16- or 32-bit weights that compressed-tensors stored as 2:4.
    """

    method: str
    sparse_only: bool


def require_directory(directory: Path) -> None:
    """Raise ModelDirectoryError unless there is such a directory."""
    if not directory.is_dir():
        raise ModelDirectoryError(f"there is no model directory {directory}")


def read_model_config(directory: Path) -> dict[str, Any]:
    """`config.json` of a directory whose weights are its safetensors files as they are.

    Raises:
        ModelDirectoryError: there is no such directory or no readable config.json; or the weights
            are quantised, an adapter's, or in a file of another name.
    """
    require_directory(directory)
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


def _token_ids(path: Path, value: Any) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    # type() and not isinstance(): True is an int, and is no token.
    if not all(type(item) is int for item in ids):
        raise ModelDirectoryError(
            f"{path}: eos_token_id is {value!r:.100}, expected a token id or a list of them"
        )
    return tuple(item for item in ids if item >= 0)  # some write -1 for none
