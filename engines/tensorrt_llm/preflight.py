"""Checks a checkpoint for everything that makes TensorRT run dense kernels without a word.

They are made on the written rank files, after fusing and splitting, because that is what TensorRT
sees: 2:4 in the whole matrix says nothing about a part that was cut at an odd place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engines.directory.tensor_file import Array, TensorFile
from engines.errors import EngineDirectoryError
from engines.tensorrt_llm.checkpoint import CHECKPOINT_DTYPES, rank_file
from engines.tensorrt_llm.tensors import TargetTensor
from maskgen.format.json_file import read_json

INPUT_MULTIPLE = 16
OUTPUT_MULTIPLE = 8
"""What sparse tensor-core kernels need; NVIDIA's Model Optimizer skips other layers too."""

LINEAR_TENSORS = (
    "attention.qkv.weight",
    "attention.dense.weight",
    "mlp.fc.weight",
    "mlp.gate.weight",
    "mlp.proj.weight",
)
_SHOWN = 12
_ROWS = 1024


class PreflightError(EngineDirectoryError):
    """A checkpoint or a set of flags with which TensorRT would run dense kernels.

    `problems` holds one sentence per finding: the layer, the number, and what to do.
    """

    def __init__(self, where: str, problems: list[str]) -> None:
        shown = [f"  - {problem}" for problem in problems[:_SHOWN]]
        if len(problems) > _SHOWN:
            shown.append(f"  - and {len(problems) - _SHOWN} more")
        super().__init__("\n".join([f"{where} cannot become a sparse engine:", *shown]))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Preflight:
    """What a checkpoint holds: linear weights of all ranks that are 2:4, and that are not."""

    sparse: int
    dense: int


def sparse_targets(targets: Collection[TargetTensor], layers: Collection[str]) -> set[str]:
    """Names of the checkpoint's tensors that are 2:4 when a mask lists `layers`.

    Raises:
        PreflightError: a mask lists only some of the layers that become one matrix (q, k and v,
            or gate and up), so that TensorRT would take the whole matrix for dense.
    """
    sparse: set[str] = set()
    problems: list[str] = []
    for group in _fused(targets):
        sources = [s.layer for target in group for s in target.sources]
        missing = [layer for layer in sources if layer not in layers]
        if not missing:
            sparse.update(target.name for target in group)
        elif len(missing) < len(sources):
            problems.append(
                f"{group[0].name}: {len(missing)} of the {len(sources)} layers that TensorRT sees"
                f" as one matrix are not in the mask ({', '.join(missing)}); list all of them or"
                " none"
            )
    if problems:
        raise PreflightError("this mask", problems)
    return sparse


def check_checkpoint(directory: Path, sparse: Sequence[Collection[str]] | None = None) -> Preflight:
    """Check every rank of a checkpoint.

    Args:
        directory: a TensorRT-LLM checkpoint.
        sparse: for each pipeline stage the names of the tensors that must be 2:4; None demands it
            of all linear weights of the decoder layers.

    Raises:
        EngineDirectoryError: the checkpoint is unreadable.
        PreflightError: it can be read, but would not give a sparse engine.
    """
    config = _read_config(directory)
    problems = list(_config_problems(config))
    mapping = config["mapping"]
    tp = int(mapping.get("tp_size", 1))
    counts = Preflight(0, 0)
    for rank in range(int(mapping.get("world_size", 1))):
        path = directory / rank_file(rank)
        if not path.is_file():
            problems.append(f"{path.name} is missing; convert the model again")
            continue
        file = TensorFile(path)
        problems += _missing_problems(file, rank, config)
        linear = [name for name in file if name.endswith(LINEAR_TENSORS)]
        demanded = [name for name in linear if sparse is None or name in sparse[rank // tp]]
        counts = Preflight(
            counts.sparse + len(demanded), counts.dense + len(linear) - len(demanded)
        )
        for name in demanded:
            problems += _tensor_problems(file.tensor(name), f"rank {rank}: {name}", tp)
            file.release(name)
    if not problems and not counts.sparse:
        problems.append("no linear weight is 2:4; build with a mask (--mask NAME=FILE)")
    if problems:
        raise PreflightError(str(directory), problems)
    return counts


def _fused(targets: Collection[TargetTensor]) -> Iterator[list[TargetTensor]]:
    """Targets that TensorRT-LLM makes one matrix of: it also joins `gate` and `fc`."""
    linear = {target.name: target for target in targets if target.linear}
    for name, target in linear.items():
        if name.endswith("mlp.fc.weight"):
            yield [target, linear[name.replace("mlp.fc", "mlp.gate")]]
        elif not name.endswith("mlp.gate.weight"):
            yield [target]


def _config_problems(config: dict[str, Any]) -> Iterator[str]:
    if config.get("is_pruned"):
        yield (
            "config.json says is_pruned: trtllm-prune took the weights out, and the builder fills"
            " the gaps with uninitialised memory; build from the full checkpoint with --strip-plan"
        )
    if config.get("dtype") not in CHECKPOINT_DTYPES:
        yield (
            f"dtype is {config.get('dtype')!r}; convert to {' or '.join(CHECKPOINT_DTYPES)},"
            " the types that sparse tactics take"
        )


def _missing_problems(file: TensorFile, rank: int, config: dict[str, Any]) -> Iterator[str]:
    pp = int(config["mapping"].get("pp_size", 1))
    layers = int(config.get("num_hidden_layers", 0)) // pp
    for layer in range(layers):
        for suffix in LINEAR_TENSORS:
            name = f"transformer.layers.{layer}.{suffix}"
            if name not in file:
                yield (
                    f"rank {rank}: {name} is missing, as trtllm-prune leaves it; the builder would"
                    " use uninitialised memory. Build from the full checkpoint with --strip-plan"
                )


def _tensor_problems(weight: Array, where: str, tp: int) -> Iterator[str]:
    if weight.ndim != 2:
        yield f"{where} has {weight.ndim} dimensions, expected 2; convert the model again"
        return
    n, k = weight.shape
    if k % INPUT_MULTIPLE:
        yield (
            f"{where} has {k} inputs at tp_size {tp}, which is no multiple of {INPUT_MULTIPLE};"
            " use a smaller tp_size or leave the layer out of the mask"
        )
    if n % OUTPUT_MULTIPLE:
        yield (
            f"{where} has {n} outputs, which is no multiple of {OUTPUT_MULTIPLE};"
            " use a smaller tp_size or leave the layer out of the mask"
        )
    if k % 4:
        return
    bad, first = dense_groups(weight)
    if bad:
        row, group = first
        yield (
            f"{where}: {bad} of {n * k // 4} groups hold more than two non-zero weights (the first"
            f" in row {row}, inputs {4 * group} to {4 * group + 3}); apply a 2:4 mask before"
            " converting"
        )


def dense_groups(weight: Array) -> tuple[int, tuple[int, int]]:
    """How many groups of four inputs hold more than two non-zero weights, and the first of them.

    Args:
        weight: (N, K), K a multiple of 4.

    Returns:
        Their number and the (row, group) of the first; (0, 0) when there is none.
    """
    bad, first = 0, (0, 0)
    for start in range(0, weight.shape[0], _ROWS):
        # Shifting the sign away makes -0.0 a zero; comparing bits is far faster than bf16 values.
        bits = weight[start : start + _ROWS].view(f"u{weight.dtype.itemsize}") << 1
        kept = (bits != 0).reshape(bits.shape[0], -1, 4).sum(axis=-1, dtype=np.uint8)
        wrong = np.argwhere(kept > 2)
        if not bad and len(wrong):
            first = (start + int(wrong[0, 0]), int(wrong[0, 1]))
        bad += len(wrong)
    return bad, first


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    if not path.is_file():
        raise EngineDirectoryError(f"{directory} is no TensorRT-LLM checkpoint: no config.json")
    config = read_json(path, EngineDirectoryError)
    if "architecture" not in config or "mapping" not in config:
        raise EngineDirectoryError(f"{path} is no TensorRT-LLM checkpoint configuration")
    return config
