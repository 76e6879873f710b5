"""Rotations of all of a model's value heads, from the second moments of its activations."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from maskgen.calibration import LayerProgress, dense_statistics
from maskgen.methods.base import Statistic
from maskgen.methods.sparsegpt import Hessian
from maskgen.texts.windows import Windows
from maskgen.transform.config import RotationConfig
from maskgen.transform.groups import Groups, PermutationGroup, TransformError
from maskgen.transform.rotation import LearnedRotation, ValueHeads, learn_rotation


def find_rotations(
    model: nn.Module,
    groups: Groups,
    config: RotationConfig,
    windows: Windows,
    progress: LayerProgress,
) -> dict[str, LearnedRotation]:
    """A rotation for every group that can be rotated, by name of the group.

    Args:
        windows: (windows, length) token ids.
    """
    chosen = {
        (group.readers[0].tensor, group.writers[0].tensor): group
        for group in groups.values()
        if group.rotatable
    }
    names = {tensor.removesuffix(".weight"): tensor for pair in chosen for tensor in pair}
    linears = {name: linear for name in names if (linear := _linear(model, name)) is not None}
    rotations = {}
    for statistics in dense_statistics(model, linears, Hessian, windows, progress):
        for (out, value), group in chosen.items():
            if out.removesuffix(".weight") in statistics:
                heads = _value_heads(model, group, out, value, statistics)
                with torch.enable_grad():
                    found = learn_rotation(heads, config.steps, config.learning_rate)
                rotations[group.name] = found
    return rotations


def _linear(model: nn.Module, name: str) -> nn.Linear | None:
    module = model.get_submodule(name)
    return module if isinstance(module, nn.Linear) else None


def _value_heads(
    model: nn.Module,
    group: PermutationGroup,
    out: str,
    value: str,
    statistics: Mapping[str, Statistic],
) -> ValueHeads:
    (place,) = group.readers
    seen, given = (statistics[tensor.removesuffix(".weight")] for tensor in (out, value))
    if not isinstance(seen, Hessian) or not isinstance(given, Hessian):
        raise TransformError(f"{group.name}: no second moments were gathered")
    weights = [model.get_parameter(tensor).detach().float() for tensor in (out, value)]
    heads = [slice(i, i + group.size) for i in range(0, len(seen.sum), group.size)]
    inside = torch.stack([seen.sum[head, head] for head in heads])
    return ValueHeads(
        out=weights[0].reshape(-1, group.blocks, place.repeat, group.size),
        value=weights[1].reshape(group.blocks, group.size, -1),
        out_moments=inside.view(group.blocks, place.repeat, group.size, group.size) / seen.tokens,
        value_moments=given.sum.diagonal() / given.tokens,
    )
