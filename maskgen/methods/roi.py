"""RoI (arXiv 2608.23048): one logit per weight, learned through a relaxed Gumbel top-n.

    a1 = phi / lambda + gumbel;  mu1 = softmax(a1 / tau);  a2 = a1 + log(1 - mu1);  mask = mu1 + mu2

and so on for n > 2.

lambda and tau fall exponentially over the first three quarters of the run and then stay; the mask
that is kept in the end is the top n of phi. Two thirds of MaskLLM's state for the same quality.
Defaults are the paper's. Its initialisation from a prior is not published in detail: here the kept
weights' logits start `margin` above the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from maskgen.format.pattern import TWO_FOUR, Pattern
from maskgen.format.placements import Codes
from maskgen.learning.batches import Batches
from maskgen.learning.config import GradientConfig, LearnConfig, NotNegative, Positive
from maskgen.learning.distributed import World
from maskgen.learning.gradient_learner import GradientLearner, Schedule
from maskgen.learning.method import LearnMethod
from maskgen.learning.native import choose_kernels
from maskgen.learning.noise import layer_number
from maskgen.learning.prior import add_weight_prior, gaussian
from maskgen.learning.relaxation import EntropicTopN, SequentialTopN, Softness
from maskgen.learning.schedules import exponential


class RoIConfig(GradientConfig):
    """RoI's settings."""

    learning_rate: Positive = 1e-3
    final_learning_rate: NotNegative = 1e-4
    weight_decay: NotNegative = 0.05
    scale: tuple[Positive, Positive] = (1.0, 0.002)
    """lambda, which divides the logits, first and last."""
    tau: tuple[Positive, Positive] = (1.0, 0.05)
    """Temperature, first and last."""
    annealed: float = Field(default=0.75, gt=0, le=1)
    """Share of the run over which lambda and tau fall."""
    top_n: Literal["sequential", "entropic"] = "sequential"
    """How the top n are relaxed: the paper's choices one after the other, or all at once by
    entropic optimal transport, which keeps no weight more than once and whose cost does not grow
    with n."""
    sigma: NotNegative = 0.01
    """Standard deviation of the initial logits."""
    margin: NotNegative = 0.1
    """How far above the others the prior's kept weights start; 0 for no prior."""
    regularisation: NotNegative = 0.0
    """lambda of MaskLLM's sparse-weight regularisation, falling linearly to 0."""


class RoI(LearnMethod[RoIConfig]):
    """Relaxed top-n over weights."""

    config: ClassVar[type[LearnConfig]] = RoIConfig

    def learner(
        self,
        model: nn.Module,
        prior: Mapping[str, Codes],
        config: RoIConfig,
        batches: Batches,
        world: World,
        pattern: Pattern = TWO_FOUR,
    ) -> GradientLearner:
        """See `LearnMethod.learner`."""
        first = next(model.parameters())
        entropic = config.top_n == "entropic"
        native = choose_kernels(config.kernels, first.device, first.dtype, pattern, entropic)
        relaxation = EntropicTopN(native, pattern) if entropic else SequentialTopN(native, pattern)

        def softness(step: int) -> Softness:
            progress = step / config.steps
            annealing = progress / config.annealed
            return Softness(
                exponential(*config.scale, annealing),
                exponential(*config.tau, annealing),
                config.regularisation * (1.0 - progress),
            )

        def initial_logits(name: str, codes: Tensor) -> Tensor:
            rows, groups = codes.shape
            shape = (rows, relaxation.planes, groups)
            logits = gaussian(shape, config.sigma, config.seed, layer_number(name))
            add_weight_prior(logits, codes.cpu(), config.margin, pattern)
            return logits

        return GradientLearner(
            model, prior, relaxation, Schedule(softness, initial_logits), config, batches, world
        )
