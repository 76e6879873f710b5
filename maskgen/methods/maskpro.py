"""MaskPro (arXiv 2506.12876): one logit per weight, learned from forward passes alone.

A mask is sampled from the logits without replacement, its loss is compared with the initial mask's
on the same text, and the logits follow the gradient of the sample's log-probability (exactly the
set's for 2:4, else that of the order it was drawn in; `mask_sampling`), weighted by
that residual less a moving average of it (the tracker). Plain SGD; four bytes of state a weight.
Defaults are those of the released code: learning rate 50, C = 10, 512 samples of 128 tokens, 32 a
step, about 10,000 steps; `debias_tracker`, `clip` and `refresh_every` are not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field
from torch import nn

from maskgen.format.pattern import TWO_FOUR, Pattern
from maskgen.format.placements import Codes
from maskgen.learning.batches import Batches
from maskgen.learning.config import Count, LearnConfig, Positive
from maskgen.learning.distributed import World
from maskgen.learning.method import LearnMethod
from maskgen.learning.native import choose_kernels
from maskgen.learning.policy import PolicyLearner


class MaskProConfig(LearnConfig):
    """MaskPro's settings."""

    steps: Count = 10_000
    sequence_length: Annotated[int, Field(ge=2)] = 128
    batch_size: Count = 32
    micro_batches: Annotated[int, Field(ge=1, le=1)] = 1
    """One sampled mask a step."""
    learning_rate: Positive = 50.0
    """Step of plain SGD, constant."""
    strength: Positive = 10.0
    """C: the initial logit of weights that the prior keeps; the others start at 0."""
    tracker_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the moving average of the residual."""
    debias_tracker: bool = False
    """Correct the moving average for its start at 0, which the released code does not: there the
    first hundred samples are all called worse than average if sampling alone costs loss."""
    clip: Positive = 100.0
    """Largest residual, in nats, that counts."""
    refresh_every: Annotated[int, Field(ge=0)] = 0
    """Passes after which the residual is taken against the mask learned so far; 0 for never. Costs
    a forward pass over all windows. The paper asks for it once the loss has halved."""
    windows: Count = 512
    """Windows of the text that are used; the initial mask's loss is measured on each."""


class MaskPro(LearnMethod[MaskProConfig]):
    """Policy gradient on sampled masks."""

    config: ClassVar[type[LearnConfig]] = MaskProConfig

    def learner(
        self,
        model: nn.Module,
        prior: Mapping[str, Codes],
        config: MaskProConfig,
        batches: Batches,
        world: World,
        pattern: Pattern = TWO_FOUR,
    ) -> PolicyLearner:
        """See `LearnMethod.learner`.

        Raises:
            ValueError: several ranks.
        """
        if world.size > 1:
            raise ValueError(f"maskpro runs in one process; torchrun started {world.size}")
        first = next(model.parameters())
        return PolicyLearner(
            model,
            prior,
            batches.first(config.windows),
            seed=config.seed,
            rate=config.learning_rate,
            strength=config.strength,
            tracker_decay=config.tracker_decay,
            refresh_every=config.refresh_every,
            debias=config.debias_tracker,
            clip=config.clip,
            pattern=pattern,
            native=choose_kernels(config.kernels, first.device, first.dtype, pattern),
        )
