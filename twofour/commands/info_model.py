"""What `twofour info MODEL` says: what a model is, and which target runs it, or why not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from engines.directory.checkpoint import Checkpoint, check_shapes
from engines.support import Check, model_support
from maskgen.format.block_fp8 import BlockFp8Model, is_block_fp8, read_block_fp8
from maskgen.format.weight_files import HEAD
from maskgen.gguf_model.config import architecture_of, model_config
from maskgen.gguf_model.header import read_gguf_header
from maskgen.gguf_model.tensors import planned_tensors
from maskgen.models import located


def describe_model(model: str) -> dict[str, dict[str, Any]]:
    """What a model is (`model`), and target -> what it makes of it (`runs`).

    Args:
        model: alias, directory or GGUF file; nothing is fetched or made of it.

    Raises:
        ModelNotFoundError: it is not on this machine.
        GgufError, ModelDirectoryError, EngineDirectoryError: it is malformed.
    """
    path = located(model)
    if path.is_dir() and is_block_fp8(path):
        return _described_fp8(read_block_fp8(path))
    if path.is_dir():
        checkpoint = Checkpoint(path)
        specs = [checkpoint.spec(name) for name in checkpoint]
        types = Counter(str(spec.dtype) for spec in specs)
        weights = sum(prod(spec.shape) for spec in specs)
        return _described(path, checkpoint.config, types, weights, checkpoint.check)
    header = read_gguf_header(path)
    config = model_config(header)
    planned = planned_tensors(header, architecture_of(header), config)
    shapes = {name: tensor.source.shape for name, tensor in planned.items()}
    types = Counter(tensor.source.type.name for tensor in planned.values())
    weights = sum(map(prod, shapes.values()))
    return _described(path, config, types, weights, lambda said: check_shapes(path, shapes, said))


def _described_fp8(model: BlockFp8Model) -> dict[str, dict[str, Any]]:
    types = Counter(tensor.entry.dtype for tensor in model.tensors.values())
    shapes = {name: tensor.entry.shape for name, tensor in model.tensors.items()}
    weights = sum(map(prod, shapes.values()))

    def check(said: Mapping[str, tuple[int, ...]]) -> None:
        tied = HEAD not in said  # a file may hold a tied head a second time
        held = {name: shape for name, shape in shapes.items() if not (tied and name == HEAD)}
        check_shapes(model.directory, held, said)

    return _described(model.directory, model.config, types, weights, check)


def _described(
    path: Path, config: Mapping[str, Any], types: Mapping[str, int], weights: int, check: Check
) -> dict[str, dict[str, Any]]:
    facts = {
        "path": str(path),
        "model_type": config.get("model_type"),
        "weights": f"{weights:,}",
        "tensors": ", ".join(f"{count} {kind}" for kind, count in sorted(types.items())),
        "tied_head": config.get("tie_word_embeddings"),
        "context": config.get("max_position_embeddings"),
    }
    support = model_support(config, check)
    return {"model": facts, "runs": {target: str(found) for target, found in support.items()}}
