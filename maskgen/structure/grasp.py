"""Gates learned under a hard mask: projected straight-through, after GRASPrune (arXiv 2604.19398).

In every step each layer keeps the units with the largest scores, exactly as many as the width says;
the gradient of the hard mask goes to all scores, those of removed units included. Then the scales
of what is left are tuned. The paper's budget is over the whole model; here it is the same in every
layer. Its body was not available: this is built from its abstract.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from maskgen.learning.batches import Batches
from maskgen.structure.config import GraspConfig
from maskgen.structure.gate_learner import GateLearner, top, units_of
from maskgen.structure.gated_model import GatedModel
from maskgen.structure.unit_scores import UnitScores, ranks
from maskgen.structure.width import Width
from maskgen.transform.groups import PermutationGroup


class Grasp(GateLearner):
    """See the module.

    Args:
        scores: of units; their ranks are where gates start.
        width: that layers get.
    """

    def __init__(
        self,
        gated: GatedModel,
        groups: Mapping[str, PermutationGroup],
        scores: UnitScores,
        width: Width,
        config: GraspConfig,
        batches: Batches,
    ) -> None:
        # From 1 to 2: gates stay positive, so that the largest are the most wanted.
        start = {name: 1 + ranks(scores[name]) for name in groups}
        super().__init__(gated, groups, start, config, 0.0, batches)
        self._width = width

    def width(self) -> Width:
        """The one that was asked for."""
        return self._width

    def choosing(self) -> dict[str, Tensor]:
        """The hard mask, with the gradient of the scores."""
        found = {}
        for name, gate in self.gates.items():
            hard = top(gate.detach().abs(), units_of(name, self._width)).float()
            found[name] = hard + gate - gate.detach()
        return found

    def after_step(self, rate: float) -> dict[str, float]:
        """Nothing: scores move by their gradient alone."""
        return {}

    def on_choice(self, name: str) -> None:
        """Scales of what is left start at 1."""
        with torch.no_grad():
            self.gates[name].fill_(1.0)
