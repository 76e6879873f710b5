"""Which parameters recovery changes, by group, and where they have to stay zero."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from maskgen.format.mask import Mask, MaskFileError
from maskgen.recovery.config import GROUPS


@dataclass(frozen=True, slots=True)
class Tuned:
    """A parameter that recovery changes.

    Attributes:
        parameter: the model's own, in fp32.
        dropped: where it stays zero; None where nothing is masked.
    """

    parameter: nn.Parameter
    dropped: Tensor | None = None


def keep_tensors(mask: Mask, model: nn.Module) -> dict[str, Tensor]:
    """Layer name -> (N, K) bool, True = kept, of every layer that the mask lists.

    Raises:
        MaskFileError: a layer is not a linear of the model, has another shape, or shares its weight
            with another module, as a head does that is tied to the embedding.
    """
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    modules = dict(model.named_modules())
    found = {}
    for name, (rows, columns) in mask.shapes.items():
        module = modules.get(name)
        if not isinstance(module, nn.Linear):
            raise MaskFileError(f"the mask lists {name}, which is no linear layer of the model")
        if tuple(module.weight.shape) != (rows, columns):
            raise MaskFileError(
                f"layer {name}: the mask is for {rows}x{columns}, the model has "
                f"{module.weight.shape[0]}x{module.weight.shape[1]}"
            )
        if others := [o for o in owners[id(module.weight)] if o != f"{name}.weight"]:
            raise MaskFileError(
                f"the mask lists {name}, whose weight is tied to {others[0]}: it cannot be zero in"
                " one and not in the other; use a mask without it"
            )
        found[name] = torch.from_numpy(mask.keep(name)).to(module.weight.device)
    return found


@torch.no_grad()
def drop(model: nn.Module, keep: Mapping[str, Tensor]) -> None:
    """Set what is not kept to zero, in place."""
    for name, kept in keep.items():
        weight: Any = model.get_submodule(name).weight
        weight.masked_fill_(~kept, 0)


def tuned_parameters(
    model: nn.Module,
    weights: Collection[str],
    keep: Mapping[str, Tensor],
    groups: Collection[str],
) -> dict[str, Tuned]:
    """Name -> parameter, of the groups that are switched on.

    Args:
        weights: names of the layers whose weights are the group of that name.
        keep: of those that a mask covers, as `keep_tensors` gives them.
        groups: that are switched on.

    A weight that is computed from another, as a quantised one is, goes by its own name.

    Raises:
        ValueError: the model has no parameter of those groups.
    """
    linears = {n for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    norms = {n for n, m in model.named_modules() if "norm" in type(m).__name__.lower()}
    embeddings = {n for n, m in model.named_modules() if isinstance(m, nn.Embedding)}
    found = {}
    for full_name, parameter in model.named_parameters():
        name = full_name.replace(".parametrizations.weight.original", ".weight")
        module, _, own = name.rpartition(".")
        group = None
        if module in weights and own == "weight":
            group = "weights"
        elif module in norms:
            group = "norms"
        elif module in linears and own == "bias":
            group = "biases"
        elif module in embeddings:
            group = "embeddings"
        if group in groups:
            masked = group == "weights" and module in keep
            found[name] = Tuned(parameter, ~keep[module] if masked else None)
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no {' and no '.join(groups)}: switch on another group of"
            f" {', '.join(GROUPS)}"
        )
    return found
