"""The groups of each architecture, written down and not traced.

What is exactly free in a decoder with grouped-query attention and a gated feed-forward part:

* `residual`: the hidden size, in one order for all layers. Read by the columns of q, k, v, gate and
  up; followed by everything else on the residual stream: embedding, head, norms, rows of o and
  down.
* `layers.N.mlp`: the intermediate size. Read by down's columns; followed by the rows of gate and
  up.
* `layers.N.value`: inside a key-value head. Read by o's columns, once per query head that reads the
  head; followed by v's rows.
* `layers.N.query_heads`: the query heads of one key-value head. o's columns, q's rows.
* `layers.N.kv_heads`: key-value heads with their query heads. o's columns, rows of q, k and v.

The last two move whole heads: exact, of no use to a mask, whose groups never cross heads. Query and
key channels stay where they are, since rotary embeddings pair them; so do norms of heads, which all
heads share. A new architecture is a line in `ARCHITECTURES`; a tensor that the table does not
account for is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskgen.format.model_directory import read_model_config
from maskgen.format.weight_files import EMBEDDING, HEAD, stored_tensors
from maskgen.transform.groups import (
    LARGEST,
    Groups,
    PermutationGroup,
    Place,
    TransformError,
    check_groups,
)


@dataclass(frozen=True, slots=True)
class Architecture:
    """How one model type differs from the others.

    Attributes:
        norms: of a decoder layer, over the residual stream. Whether a norm multiplies by gamma or
            by 1 + gamma makes no difference to an order.
        head_norms: of query and key heads.
    """

    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    head_norms: tuple[str, ...] = ()


_HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
_GEMMA_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(),
    "mistral": Architecture(),
    "qwen2": Architecture(),
    "qwen3": Architecture(head_norms=_HEAD_NORMS),
    "gemma3_text": Architecture(_GEMMA_NORMS, _HEAD_NORMS),
}
"""Model type -> architecture."""

_ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
"""Those that act on every channel alone, all alike."""
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATED = ("mlp.gate_proj", "mlp.up_proj")
_OUT, _DOWN = "self_attn.o_proj", "mlp.down_proj"


@dataclass(frozen=True, slots=True)
class ModelGroups:
    """The groups of one model.

    Attributes:
        architecture: its model type.
        groups: by name, in the order in which they are applied.
    """

    architecture: str
    groups: Groups


@dataclass(frozen=True, slots=True)
class _Heads:
    queries: int
    keys: int
    width: int

    @property
    def repeat(self) -> int:
        return self.queries // self.keys


def model_groups(directory: Path) -> ModelGroups:
    """The groups of a model directory, checked against its tensors.

    Raises:
        TransformError: the architecture, its activation or one of its tensors is not in the table,
            or tensors and config.json do not agree.
        ModelDirectoryError: see `maskgen.format.model_directory.stored_tensors`.
    """
    config = read_model_config(directory)
    model_type = config.get("model_type")
    architecture = ARCHITECTURES.get(model_type) if isinstance(model_type, str) else None
    if architecture is None:
        raise TransformError(
            f"model type {model_type!r:.40} is not in the table of transforms, which has"
            f" {', '.join(ARCHITECTURES)}"
        )
    activation = config.get("hidden_activation") or config.get("hidden_act") or "silu"
    if activation not in _ACTIVATIONS:
        raise TransformError(
            f"the activation {activation!r:.40} is not known to act on every channel alone; known"
            f" are {', '.join(_ACTIVATIONS)}"
        )
    shapes = {name: stored.entry.shape for name, stored in stored_tensors(directory).items()}
    hidden, heads = _size(config, "hidden_size"), _heads(config)
    layers = range(_size(config, "num_hidden_layers"))
    if layers.stop > len(shapes):
        raise TransformError(
            f"config.json says {layers.stop:,} decoder layers, the files hold {len(shapes):,}"
            " tensors"
        )
    found = [_residual(architecture, layers, hidden, shapes)]
    for layer in layers:
        found += _inside(layer, _size(config, "intermediate_size"), heads, shapes)
    for group in found:
        if group.size >= LARGEST:
            raise TransformError(f"{group.name} has {group.size} channels, at most {LARGEST - 1}")
    groups = {group.name: group for group in found}
    known = [f"model.layers.{i}.{norm}.weight" for i in layers for norm in architecture.head_norms]
    check_groups(groups, shapes, known)
    return ModelGroups(str(model_type), groups)


def _residual(
    architecture: Architecture, layers: range, hidden: int, shapes: Mapping[str, tuple[int, ...]]
) -> PermutationGroup:
    readers, writers = [], [Place(name, 1) for name in (EMBEDDING, HEAD) if name in shapes]
    for prefix in (f"model.layers.{layer}" for layer in layers):
        readers += [Place(f"{prefix}.{name}.weight", 1) for name in _QKV + _GATED]
        writers += [Place(f"{prefix}.{norm}.weight", 0) for norm in architecture.norms]
        for name in (_OUT, _DOWN):
            writers += _rows(f"{prefix}.{name}", shapes)
    writers.append(Place("model.norm.weight", 0))
    return PermutationGroup("residual", 1, hidden, tuple(readers), tuple(writers))


def _inside(
    layer: int, intermediate: int, heads: _Heads, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[PermutationGroup]:
    prefix, name = f"model.layers.{layer}", f"layers.{layer}"
    query, key, value = (f"{prefix}.{module}" for module in _QKV)
    out = f"{prefix}.{_OUT}.weight"
    yield PermutationGroup(
        f"{name}.mlp",
        1,
        intermediate,
        (Place(f"{prefix}.{_DOWN}.weight", 1),),
        tuple(row for module in _GATED for row in _rows(f"{prefix}.{module}", shapes)),
    )
    yield PermutationGroup(
        f"{name}.value",
        heads.keys,
        heads.width,
        (Place(out, 1, repeat=heads.repeat),),
        tuple(_rows(value, shapes)),
        rotatable=True,
    )
    yield PermutationGroup(
        f"{name}.query_heads",
        heads.keys,
        heads.repeat,
        (Place(out, 1, unit=heads.width),),
        tuple(_rows(query, shapes, heads.width)),
    )
    together = heads.repeat * heads.width
    yield PermutationGroup(
        f"{name}.kv_heads",
        1,
        heads.keys,
        (Place(out, 1, unit=together),),
        (
            *_rows(query, shapes, together),
            *_rows(key, shapes, heads.width),
            *_rows(value, shapes, heads.width),
        ),
    )


def _rows(module: str, shapes: Mapping[str, tuple[int, ...]], unit: int = 1) -> list[Place]:
    """A linear's rows, and its bias if it has one."""
    bias = [f"{module}.bias"] if f"{module}.bias" in shapes else []
    return [Place(tensor, 0, unit=unit) for tensor in (f"{module}.weight", *bias)]


def _heads(config: Mapping[str, Any]) -> _Heads:
    queries = _size(config, "num_attention_heads")
    keys = queries
    if config.get("num_key_value_heads") is not None:
        keys = _size(config, "num_key_value_heads")
    if queries % keys:
        raise TransformError(f"{queries} query heads do not divide among {keys} key-value heads")
    if config.get("head_dim") is not None:
        return _Heads(queries, keys, _size(config, "head_dim"))
    return _Heads(queries, keys, _size(config, "hidden_size") // queries)


def _size(config: Mapping[str, Any], field: str) -> int:
    value = config.get(field)
    # type() and not isinstance(): True is an int, and is no size.
    if type(value) is not int or value < 1:
        raise TransformError(f"config.json: {field} is {value!r:.40}, expected a number from 1")
    return value
