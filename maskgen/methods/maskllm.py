"""MaskLLM (arXiv 2409.17481, NeurIPS 2024): a logit per placement of a group, learned by gradient.

    pi ~ N(0, sigma) + std(pi) * sim(prior, placement) * alpha          (prior.py)
    y = softmax((kappa * pi + gumbel) / tau), mask = y @ placements     (gumbel.py)
    minimise  L(weight * mask) - lambda_t * sum((weight * mask)^2)

L is `next_token_loss` (learning/loss.py), called by `GradientLearner`
(learning/gradient_learner.py). The second term is never computed, only its gradient is: in
`Relaxation.add_gradient` (learning/relaxation.py), and in `gumbel_backward_row` (csrc/gumbel.h)
where the native kernels learn.

kappa rises and tau falls linearly over the run, lambda_t falls linearly to 0, every micro-batch
draws fresh noise, and the mask that is kept in the end is the arg-max of pi. Defaults are the
paper's (its Table 7 and section 4); short runs want a larger learning rate and alpha
(docs/learning.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import nn

from maskgen.format.pattern import TWO_FOUR, Pattern
from maskgen.format.placements import Codes
from maskgen.learning.batches import Batches
from maskgen.learning.config import GradientConfig, LearnConfig, NotNegative, Positive
from maskgen.learning.distributed import World
from maskgen.learning.gradient_learner import GradientLearner
from maskgen.learning.method import LearnMethod
from maskgen.learning.native import choose_kernels
from maskgen.learning.placement_schedule import Hardening, LogitStart, placement_schedule
from maskgen.learning.relaxation import GumbelPlacements

MOST_PLACEMENTS = 70
"""Those of 4:8, with 35 bytes of logits a weight; the next ones in use, of 8:16, are 12,870."""


class MaskLLMConfig(GradientConfig):
    """MaskLLM's settings."""

    kappa: tuple[Positive, Positive] = (100.0, 500.0)
    """Scale of the logits, first and last."""
    tau: tuple[Positive, Positive] = (4.0, 0.05)
    """Temperature, first and last."""
    sigma: Positive = 0.01
    """Standard deviation of the initial logits."""
    alpha: NotNegative = 3.0
    """Strength of the prior, in standard deviations; 0 for none."""
    regularisation: NotNegative = 1e-5
    """lambda of the sparse-weight regularisation, at the first step."""


class MaskLLM(LearnMethod[MaskLLMConfig]):
    """Gumbel-softmax over placements."""

    config: ClassVar[type[LearnConfig]] = MaskLLMConfig

    def learner(
        self,
        model: nn.Module,
        prior: Mapping[str, Codes],
        config: MaskLLMConfig,
        batches: Batches,
        world: World,
        pattern: Pattern = TWO_FOUR,
    ) -> GradientLearner:
        """See `LearnMethod.learner`.

        Raises:
            ValueError: the pattern has more than `MOST_PLACEMENTS`.
        """
        if pattern.placements > MOST_PLACEMENTS:
            raise ValueError(
                f"maskllm learns a logit for each of a group's placements: {pattern} has"
                f" {pattern.placements:,}, the limit is {MOST_PLACEMENTS} (4:8); use roi or maskpro"
            )
        first = next(model.parameters())
        native = choose_kernels(config.kernels, first.device, first.dtype, pattern)
        relaxation = GumbelPlacements(native, pattern)

        hardening = Hardening(config.kappa, config.tau, config.regularisation, config.steps)
        start = LogitStart(config.sigma, config.alpha, config.seed)
        schedule = placement_schedule(relaxation, hardening, start)
        return GradientLearner(model, prior, relaxation, schedule, config, batches, world)
