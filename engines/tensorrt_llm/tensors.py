"""Which Hugging Face tensors make which TensorRT-LLM tensor, and how they are split over ranks.

Names, order and split axes are those of TensorRT-LLM's own converter: q, k and v are split first
and concatenated afterwards; `fc` is the *gate* projection and `gate` the *up* projection; weights
stay (out, in), so 2:4 along the inputs is kept by every split at a multiple of four inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import numpy as np

from engines.directory.decoder_config import DecoderConfig
from engines.directory.tensor_file import Array
from engines.tensorrt_llm.config import Mapping, shares_embedding


class Split(Enum):
    """Where a tensor is cut for tensor parallelism."""

    WHOLE = "whole"
    ROWS = "rows"
    KV_ROWS = "kv_rows"
    """By key-value heads; repeated where there are fewer heads than ranks."""
    COLUMNS = "columns"
    VOCAB_ROWS = "vocab_rows"
    """By rows, zero rows being added until they can be."""


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """One Hugging Face tensor and how it is split.

    Attributes:
        name: in the model directory.
        split: where it is cut.
        offset: added to its values: some families store gains less 1.
    """

    name: str
    split: Split
    offset: float = 0.0

    @property
    def layer(self) -> str:
        """The module that a mask would list, such as `model.layers.0.mlp.up_proj`."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True, slots=True)
class TargetTensor:
    """One tensor of the checkpoint: its sources' parts, one below the other.

    Attributes:
        name: in a rank file; layer numbers count from 0 in every pipeline stage.
        sources: at least one.
        linear: whether it is a decoder layer's linear weight, which may be 2:4.
    """

    name: str
    sources: tuple[SourceTensor, ...]
    linear: bool = False


def stage_targets(decoder: DecoderConfig, mapping: Mapping, stage: int) -> Iterator[TargetTensor]:
    """The tensors of each rank of pipeline stage `stage`, in the order of the model."""
    per_stage = decoder.layers // mapping.pp_size
    shared = shares_embedding(decoder)
    if stage == 0:
        split = Split.VOCAB_ROWS if shared else Split.WHOLE
        table = SourceTensor("model.embed_tokens.weight", split)
        yield TargetTensor("transformer.vocab_embedding.weight", (table,))
    for local in range(per_stage):
        yield from _layer_targets(decoder, local, stage * per_stage + local)
    if stage == mapping.pp_size - 1:
        head = "model.embed_tokens" if decoder.tied else "lm_head"
        yield _norm(decoder, "transformer.ln_f.weight", "model.norm.weight")
        if not shared:
            rows = SourceTensor(f"{head}.weight", Split.VOCAB_ROWS)
            yield TargetTensor("lm_head.weight", (rows,))


def local_shape(
    source: SourceTensor, full: tuple[int, ...], decoder: DecoderConfig, tp: int
) -> tuple[int, ...]:
    """Shape of one rank's part of a tensor of shape `full`."""
    match source.split:
        case Split.WHOLE:
            return full
        case Split.ROWS:
            return (full[0] // tp, *full[1:])
        case Split.KV_ROWS:
            return (_kv_heads(decoder, tp) * decoder.head_dim, *full[1:])
        case Split.COLUMNS:
            return (*full[:-1], full[-1] // tp)
        case Split.VOCAB_ROWS:
            return (-(-full[0] // tp), *full[1:])


def local_part(
    source: SourceTensor, tensor: Array, decoder: DecoderConfig, tp: int, rank: int
) -> Array:
    """Tensor-parallel rank `rank`'s part of `tensor`; a view where nothing is added."""
    extent = local_shape(source, tensor.shape, decoder, tp)
    match source.split:
        case Split.WHOLE:
            return tensor
        case Split.ROWS:
            return tensor[rank * extent[0] : (rank + 1) * extent[0]]
        case Split.KV_ROWS:
            start = rank * decoder.kv_heads // tp * decoder.head_dim
            return tensor[start : start + extent[0]]
        case Split.COLUMNS:
            return tensor[..., rank * extent[-1] : (rank + 1) * extent[-1]]
        case Split.VOCAB_ROWS:
            part = tensor[rank * extent[0] : (rank + 1) * extent[0]]
            missing = extent[0] - part.shape[0]
            if not missing:
                return part
            return np.concatenate([part, np.zeros((missing, *extent[1:]), tensor.dtype)])


def _kv_heads(decoder: DecoderConfig, tp: int) -> int:
    return max(1, decoder.kv_heads // tp)


def _norm(decoder: DecoderConfig, name: str, source: str) -> TargetTensor:
    whole = SourceTensor(source, Split.WHOLE, decoder.family.gain_offset)
    return TargetTensor(name, (whole,))


def _layer_targets(decoder: DecoderConfig, local: int, layer: int) -> Iterator[TargetTensor]:
    ours, theirs = f"transformer.layers.{local}", f"model.layers.{layer}"
    before = decoder.family.norms["attention_input"]
    yield _norm(decoder, f"{ours}.input_layernorm.weight", f"{theirs}.{before}.weight")
    for kind in ("weight", "bias") if decoder.biases else ("weight",):
        sources = (
            SourceTensor(f"{theirs}.self_attn.q_proj.{kind}", Split.ROWS),
            SourceTensor(f"{theirs}.self_attn.k_proj.{kind}", Split.KV_ROWS),
            SourceTensor(f"{theirs}.self_attn.v_proj.{kind}", Split.KV_ROWS),
        )
        yield TargetTensor(f"{ours}.attention.qkv.{kind}", sources, linear=kind == "weight")
    if decoder.family.head_norms == "head":
        for name in "q", "k":
            source = f"{theirs}.self_attn.{name}_norm.weight"
            yield _norm(decoder, f"{ours}.attention.{name}_layernorm.weight", source)
    for name, source, split in (
        ("attention.dense", "self_attn.o_proj", Split.COLUMNS),
        ("mlp.fc", "mlp.gate_proj", Split.ROWS),
        ("mlp.gate", "mlp.up_proj", Split.ROWS),
        ("mlp.proj", "mlp.down_proj", Split.COLUMNS),
    ):
        weight = SourceTensor(f"{theirs}.{source}.weight", split)
        yield TargetTensor(f"{ours}.{name}.weight", (weight,), linear=True)
    after = decoder.family.norms["mlp_input"]
    yield _norm(decoder, f"{ours}.post_layernorm.weight", f"{theirs}.{after}.weight")
