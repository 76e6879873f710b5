"""MaskPrune (Qin, Tan et al., arXiv 2502.14008), as far as it is known.

Only its abstract is public: masks and one target width for all layers, trained together by a
minimax over sparsity and resource constraints, a proximal step for the sparsity term, straight-
through for the width, low-rank differences and distillation while pruning. **What is here is a
reconstruction** from that and from UVC (arXiv 2203.08243), by one of the same authors, with UVC's
widths by layer replaced by shared ones:

    min over m, s, theta   max over y, z >= 0
        L(m, theta) + sum_l y_l S_s(m_l^2) + z (R(s) - B)

m_l are a layer's gates, s how many units every layer loses, S_s the sum of the s smallest, theta
the low-rank differences, R the share of weights (or of measured time) left, B the budget. Of each
kind of unit there is one s, and one y for every layer. A step: m (`adam_mini`) and theta (AdamW)
move; then the s smallest gates of every layer are divided by 1 + 2 rate y (the proximal step); s
moves against its gradient, in which layers are averaged, so that the kind that is cheap in all
layers shrinks; then y and z ascend. Counts are rounded as removal will round them before they are
used (whole heads, and channels in multiples that fill what R leaves), and s takes their gradient as
its own.

Sums are divided by a layer's number of units, so that rates do not depend on its size. All gates
start at 1, so that nothing but chance would say at first which are the smallest: m^2 is weighed by
the unit's rank in a one-shot method's order, from 1 down to 1 - `spread`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from maskgen.learning.batches import Batches
from maskgen.structure.bottom_sum import bottom, bottom_slope, bottom_sum
from maskgen.structure.config import MaskPruneConfig
from maskgen.structure.file import FEED_FORWARD, HEADS
from maskgen.structure.gate_learner import GateLearner, units_of
from maskgen.structure.gated_model import GatedModel
from maskgen.structure.unit_scores import UnitScores, ranks
from maskgen.structure.width import LayerShape, Width
from maskgen.transform.groups import PermutationGroup

_KINDS = (FEED_FORWARD, HEADS)
_SMALL = 1e-3  # multipliers at the start, as UVC's
_MET = 0.005


class MaskPrune(GateLearner):
    """See the module.

    Args:
        scores: of units, whose ranks weigh gates when they are compared.
        shape: of the model's layers.
        ratio: B, the share of what layers cost (`LayerShape.costs`) that may be left.
        key_value_heads: that every layer keeps; None to learn it.
        multiple: that the feed-forward width is one of.
    """

    def __init__(
        self,
        gated: GatedModel,
        groups: Mapping[str, PermutationGroup],
        scores: UnitScores,
        shape: LayerShape,
        ratio: float,
        key_value_heads: int | None,
        multiple: int,
        config: MaskPruneConfig,
        batches: Batches,
    ) -> None:
        start = {name: torch.ones(group.size) for name, group in groups.items()}
        super().__init__(gated, groups, start, config, config.learning_rate, batches)
        self._shape, self._ratio, self._multiple = shape, ratio, multiple
        self._fixed_heads, self._settings = key_value_heads, config
        self._prior = {
            name: (1 - config.spread * (1 - ranks(scores[name]))).to(self._device)
            for name in groups
        }
        # Removed shares of channels and heads; y by kind and layer; z, and its step.
        self._removed = torch.zeros(2)
        if key_value_heads is not None:
            self._removed[1] = 1 - key_value_heads / shape.full.key_value_heads
        self._vanish = dict.fromkeys(groups, _SMALL)
        self._budget, self._budget_rate = _SMALL, config.budget_rate

    def width(self) -> Width:
        """The widest layers within the budget, with the heads that the removed share leaves."""
        return self._widest(self._ratio)

    def _widest(self, ratio: float) -> Width:
        """Within a share, beside the heads that stay: rounded as removal will round."""
        heads, full = self._fixed_heads, self._shape.full.key_value_heads
        if heads is None:
            heads = max(1, full - round(float(self._removed[1]) * full))
        return self._shape.widest(ratio, heads, self._multiple)

    def scores(self, name: str) -> Tensor:
        """(size,) gates, weighed by the ranks of the one-shot method."""
        return self.gates[name].detach().abs() * self._prior[name]

    def choosing(self) -> dict[str, Tensor]:
        """The gates."""
        return dict(self.gates)

    def on_choice(self, name: str) -> None:
        """Gates of what is left stay what they are: removal folds them into the weights."""

    @torch.no_grad()
    def after_step(self, rate: float) -> dict[str, float]:
        """The proximal step, the width's, and the multipliers'."""
        counts = self._counts()
        left = dict.fromkeys(_KINDS, 0.0)
        slopes = {kind: [0.0] for kind in _KINDS}
        for name, gate in self.gates.items():
            kind, size = name.rpartition(".")[2], len(gate)
            count = counts[kind]
            gate[bottom(self.scores(name), count)] /= 1 + 2 * rate * self._vanish[name]
            squares = self.scores(name).square()
            slopes[kind].append(self._vanish[name] * float(bottom_slope(squares, count)))
            remaining = float(bottom_sum(squares, count)) / size
            self._vanish[name] += self._settings.vanish_rate * remaining
            left[kind] = max(left[kind], remaining)
        gap = self._move_width({kind: sum(s) / max(1, len(s) - 1) for kind, s in slopes.items()})
        self._budget = max(0.0, self._budget + self._budget_rate * gap)
        if abs(gap) < _MET:
            self._budget_rate /= 2
        return {
            "removed_channels": float(self._removed[0]),
            "removed_heads": float(self._removed[1]),
            "gap": gap,
            "budget": self._budget,
            "left_channels": left[FEED_FORWARD],
            "left_heads": left[HEADS],
            "vanish": max(self._vanish.values()),
        }

    def _counts(self) -> dict[str, int]:
        """Units that every layer loses now, rounded as removal rounds them."""
        full = self._shape.full
        left = self._widest(min(1.0, max(self._ratio, self._share(self._removed))))
        return {
            FEED_FORWARD: full.intermediate - left.intermediate,
            HEADS: full.key_value_heads - left.key_value_heads,
        }

    def _share(self, removed: Tensor) -> float:
        return 1 - float(removed.double() @ self._cost_shares())

    def _cost_shares(self) -> Tensor:
        """(2,) float64: what all channels, and all heads, are of a layer's costs."""
        full, costs = self._shape.full, self._shape.costs
        kinds = [full.intermediate * costs.channel, full.key_value_heads * costs.head]
        return torch.tensor(kinds, dtype=torch.float64) / costs.of(full)

    def _move_width(self, slopes: Mapping[str, float]) -> float:
        """Move removed shares against their gradient; gives how far the budget is exceeded."""
        shape, rate = self._shape, self._settings.width_rate
        slope = torch.tensor([slopes[FEED_FORWARD], slopes[HEADS]])
        gradient = (slope - self._budget * self._cost_shares().float()).clamp(-1, 1)
        if self._fixed_heads is not None:
            gradient[1] = 0
        keys = shape.full.key_value_heads
        most = torch.tensor([1 - self._multiple / shape.full.intermediate, 1 - 1 / keys])
        moved = (self._removed - rate * gradient).clamp(torch.zeros(2), most.clamp_min(0))
        gap = self._share(moved) - self._ratio
        if gap < 0:
            # Past the budget: go back along the step, or the multipliers would chase each other.
            before = self._share(self._removed) - self._ratio
            part = 0.0 if before <= 0 else before / (before - gap)
            moved = self._removed + part * (moved - self._removed)
            gap = self._share(moved) - self._ratio
        self._removed = moved
        return gap

    def measure(self) -> dict[str, float]:
        """How far the gates of units that would be removed are from zero: the largest of all."""
        if self.kept:
            return {}
        width = self.width()
        largest = 0.0
        for name, gate in self.gates.items():
            lost = len(gate) - units_of(name, width)
            smallest = gate.detach().abs()[bottom(self.scores(name), lost)]
            largest = max(largest, float(smallest.max()) if lost else 0.0)
        return {"largest_lost_gate": largest}

    def learned(self) -> dict[str, Tensor]:
        """Gates, differences, widths and multipliers."""
        own = {
            "width.removed": self._removed,
            # As wide as they are computed, or a resumed run would end elsewhere.
            "width.budget": torch.tensor([self._budget, self._budget_rate], dtype=torch.float64),
            "width.vanish": torch.tensor(list(self._vanish.values()), dtype=torch.float64),
        }
        return {**super().learned(), **own}

    def restore(self, learned: Mapping[str, Tensor], optimiser: Mapping[str, Tensor]) -> None:
        """Everything of a checkpoint."""
        super().restore(learned, optimiser)
        self._removed = learned["width.removed"].cpu().clone()
        self._budget, self._budget_rate = learned["width.budget"].tolist()
        vanish = learned["width.vanish"].tolist()
        self._vanish = dict(zip(self._vanish, vanish, strict=True))
