"""How much each unit matters, found once: the baselines, and where learned gates start.

magnitude: the Euclidean norm of all weights of a unit. FLAP (An et al., "Fluctuation-based Adaptive
Structured Pruning", arXiv 2312.11983, its uniform mode UL-UM): the variance of an input of down or
o times the squared norm of the weights that read it, summed over a unit. FLAP's bias, which makes
up for the mean of removed inputs, is left out: these linears have none to put it in.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from maskgen.calibration import LayerProgress, dense_statistics
from maskgen.methods.base import Statistic
from maskgen.texts.windows import Windows
from maskgen.transform.groups import PermutationGroup

UnitScores = Mapping[str, Tensor]
"""Group name -> (size,) fp32, how much each unit matters within its layer."""


@torch.no_grad()
def magnitude(model: nn.Module, groups: Mapping[str, PermutationGroup]) -> dict[str, Tensor]:
    """Norms of units: their rows, and the columns that read them; biases do not count."""
    tensors = dict(model.named_parameters())
    scores = {}
    for name, group in groups.items():
        squares = torch.zeros(group.size)
        for place in group.places:
            tensor = tensors[place.tensor].float().cpu()
            if tensor.ndim == 2:
                by_channel = tensor.square().sum(dim=1 - place.axis)
                squares += by_channel.view(group.size, place.unit).sum(dim=1)
        scores[name] = squares.sqrt()
    return scores


class Fluctuation(Statistic):
    """Variance of every input feature."""

    def __init__(self, width: int, device: torch.device) -> None:
        self._count = 0
        self._sum = torch.zeros(width, dtype=torch.float64, device=device)
        self._squares = torch.zeros(width, dtype=torch.float64, device=device)

    def add(self, inputs: Tensor) -> None:
        self._count += len(inputs)
        self._sum += inputs.sum(dim=0)
        self._squares += inputs.square().sum(dim=0)

    @property
    def variance(self) -> Tensor:
        """(K,) fp64."""
        mean = self._sum / self._count
        return (self._squares / self._count - mean.square()).clamp_min(0)


@torch.no_grad()
def flap(
    model: nn.Module,
    groups: Mapping[str, PermutationGroup],
    windows: Windows,
    progress: LayerProgress = lambda done, count, name: None,
) -> dict[str, Tensor]:
    """FLAP's score of units, on the whole model's activations.

    Args:
        model: causal language model; left as it is.
        windows: (windows, length) token ids.

    Raises:
        SelectionError: as `maskgen.calibration.dense_statistics`.
    """
    readers = {
        place.tensor.removesuffix(".weight"): (name, group.size)
        for name, group in groups.items()
        for place in group.readers
    }
    linears: dict[str, nn.Linear] = {
        name: module
        for name, module in model.named_modules()
        if name in readers and isinstance(module, nn.Linear)
    }
    found: dict[str, Tensor] = {}
    for layer in dense_statistics(model, linears, Fluctuation, windows, progress):
        for reader, statistic in layer.items():
            name, size = readers[reader]
            if not isinstance(statistic, Fluctuation):
                raise TypeError(f"{reader} has the statistic of another method")
            by_channel = statistic.variance * linears[reader].weight.float().square().sum(dim=0)
            found[name] = by_channel.view(size, -1).sum(dim=1).float().cpu()
    return found


def ranks(scores: Tensor) -> Tensor:
    """(size,) fp32 from 0, the unit that matters least, to 1."""
    places = torch.empty(len(scores))
    places[torch.sort(scores, stable=True).indices] = torch.arange(len(scores)).float()
    return places / max(1, len(scores) - 1)
