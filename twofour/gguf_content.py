"""GGUF files of models: what they say comes from how the engines understand config.json."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.directory.config_fields import read_field
from engines.directory.decoder_config import DecoderConfig, decoder_config
from engines.directory.rope import Rope
from engines.errors import EngineDirectoryError
from maskgen.format.digests import base_digest
from maskgen.format.mask import Mask, check_base
from maskgen.format.model_directory import end_token_ids, read_model_config
from maskgen.gguf_model.architectures import ARCHITECTURES, GgufArchitecture
from maskgen.gguf_model.config import model_config
from maskgen.gguf_model.header import GgufError, read_gguf_header
from maskgen.gguf_model.rope import LLAMA3_FREQUENCIES, LONG_FACTORS, SHORT_FACTORS
from maskgen.gguf_model.vocabulary_metadata import vocabulary_metadata
from maskgen.gguf_model.write import EXPORT_TYPES, GgufContent, write_gguf

_SAME_AS_LLAMA = {"mistral": "llama"}
"""Families that llama.cpp runs as another one, where they have no windows."""

Vectors = dict[str, npt.NDArray[np.float32]]


def gguf_content(model: Path, name: str) -> GgufContent:
    """The metadata of a model directory.

    Args:
        model: the directory.
        name: what the file calls the model.

    Raises:
        GgufError: no architecture of GGUF files is this model's, or one cannot say what it does.
        EngineDirectoryError, ModelDirectoryError: the directory is malformed.
    """
    config = read_model_config(model)
    decoder = decoder_config(config)
    wanted = _SAME_AS_LLAMA.get(decoder.model_type, decoder.model_type)
    found = [key for key, one in ARCHITECTURES.items() if one.model_type == wanted]
    if not found:
        raise GgufError(f"{decoder.model_type} models are not exported to GGUF files")
    architecture = ARCHITECTURES[found[0]]
    keys: dict[str, Any] = {
        "context_length": decoder.rope.context,
        "embedding_length": decoder.hidden,
        "block_count": decoder.layers,
        "feed_forward_length": decoder.intermediate,
        "attention.head_count": decoder.heads,
        "attention.head_count_kv": decoder.kv_heads,
        "attention.key_length": decoder.head_dim,
        "attention.value_length": decoder.head_dim,
        architecture.epsilon: decoder.eps,
        "rope.freq_base": decoder.rope.theta,
        "rope.dimension_count": decoder.rope.dim,
        "vocab_size": decoder.vocab,
    }
    for key, field in architecture.fields.items():
        value = read_field(config, field)
        if value is not None:
            whole = key.endswith(("window", "residual"))
            keys[key] = value if whole else float(value)
    if len(decoder.ropes) > 1 and decoder.ropes[1].theta == 10000.0:
        keys.pop("rope.freq_base_swa", None)  # what llama.cpp takes where nothing is said
    scaling, vectors = _scaling(decoder.rope, architecture)
    metadata = {
        "general.type": "model",
        "general.name": name,
        **{f"{found[0]}.{key}": value for key, value in (keys | scaling).items()},
        **vocabulary_metadata(model, decoder.vocab),
    }
    ends = end_token_ids(model, metadata.get("tokenizer.ggml.eos_token_id"))
    turns = [token for token in ends if token != metadata.get("tokenizer.ggml.eos_token_id")]
    if turns:
        metadata["tokenizer.ggml.eot_token_id"] = turns[0]
    told = {"num_hidden_layers": decoder.layers} | _flags(decoder, architecture)
    return GgufContent(found[0], architecture, told, decoder.head_dim, metadata, vectors)


def export_gguf(
    directory: Path, out: Path, name: str, mask: Mask | None, kind: str
) -> dict[str, int]:
    """Write a model as a GGUF file, whole or not at all.

    Args:
        directory: of the model.
        out: the file; must not exist.
        name: what the file calls the model.
        mask: what it drops becomes zero.
        kind: type of the matrices, one of `EXPORT_TYPES`.

    Returns:
        How many matrices got which type.

    Raises:
        ValueError: the type is unknown.
        FileExistsError: `out` exists.
        MaskFileError: the mask belongs to another model.
        GgufError: a GGUF file cannot say what the model is.
    """
    if kind not in EXPORT_TYPES:
        raise ValueError(f"--type {kind!r} is none of {', '.join(EXPORT_TYPES)}")
    if out.exists():
        raise FileExistsError(f"{out} exists already; name a new file")
    if mask is not None:
        check_base(mask, base_digest(directory), str(directory))
    content = gguf_content(directory, name)
    partial = out.with_name(f".{out.name}.partial")
    try:
        counts = write_gguf(directory, partial, content, mask, EXPORT_TYPES[kind])
        check_said(directory, partial)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return counts


def check_said(model: Path, file: Path) -> None:
    """Raise GgufError unless a written file is read as the model that it was made of."""
    wanted = decoder_config(read_model_config(model))
    try:
        found = decoder_config(model_config(read_gguf_header(file)))
    except EngineDirectoryError as error:
        raise GgufError(f"{model} cannot be said in a GGUF file: {error}") from error
    for field in fields(DecoderConfig):
        mine, theirs = getattr(wanted, field.name), getattr(found, field.name)
        if field.name == "model_type":
            mine = _SAME_AS_LLAMA.get(mine, mine)
        if field.name == "ropes":
            mine, theirs = (_turns(ropes) for ropes in (mine, theirs))
        if field.name != "scales" and mine != theirs:
            raise GgufError(
                f"{model} cannot be said in a GGUF file: {field.name} is {mine!r:.80}, the file's"
                f" readers would take {theirs!r:.80}"
            )
    pairs = (
        (getattr(wanted.scales, f.name), getattr(found.scales, f.name))
        for f in fields(wanted.scales)
    )
    if not all(math.isclose(a, b, rel_tol=1e-6) for a, b in pairs):
        raise GgufError(
            f"{model} cannot be said in a GGUF file: its readers would take {found.scales} in"
            f" place of {wanted.scales}"
        )


def _turns(ropes: tuple[Rope, ...]) -> list[tuple[list[float], float]]:
    return [
        ([float(f"{one:.5g}") for one in found], round(factor, 5))
        for found, factor in (rope.frequencies() for rope in ropes)
    ]


def _flags(decoder: DecoderConfig, architecture: GgufArchitecture) -> dict[str, bool]:
    names = {"attn_q": "q_proj", "ffn_gate": "gate_proj"}
    return {
        flag: names.get(linears[0]) in decoder.biases
        for flag, linears in architecture.biases.items()
        if flag
    }


def _scaling(rope: Rope, architecture: GgufArchitecture) -> tuple[dict[str, Any], Vectors]:
    """The keys of a scaled rope, and its tensors."""
    prefix = "rope.scaling."
    if rope.kind == "default":
        return {}, {}
    if rope.kind == "llama3" and architecture.paired:
        plain, scaled = rope.inverse_wavelengths(), rope.frequencies()[0]
        return {}, {LLAMA3_FREQUENCIES: (plain / scaled).astype(np.float32)}
    if rope.kind == "longrope" and "longrope" in architecture.scaled_rope:
        tensors = {
            tensor: np.asarray(rope.fields[f"{name}_factor"], np.float32)
            for name, tensor in (("long", LONG_FACTORS), ("short", SHORT_FACTORS))
        }
        original = int(rope.number("original_max_position_embeddings"))
        said = {"original_context_length": original, "attn_factor": rope.frequencies()[1]}
        return {f"{prefix}{key}": value for key, value in said.items()}, tensors
    if rope.kind in architecture.scaled_rope:
        keys: dict[str, Any] = {"type": rope.kind, "factor": rope.number("factor")}
        if rope.kind == "yarn":
            keys["original_context_length"] = int(rope.number("original_max_position_embeddings"))
        return {f"{prefix}{key}": value for key, value in keys.items()}, {}
    raise GgufError(f"a rope of the kind {rope.kind!r} is not exported for this family")
