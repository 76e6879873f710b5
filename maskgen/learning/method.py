"""What a learned method is: settings, and a learner made from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Generic, TypeVar

from torch import nn

from maskgen.format.pattern import TWO_FOUR, Pattern
from maskgen.format.placements import Codes
from maskgen.learning.batches import Batches
from maskgen.learning.config import LearnConfig
from maskgen.learning.distributed import World
from maskgen.learning.learner import MaskLearner

ConfigT = TypeVar("ConfigT", bound=LearnConfig)


class LearnMethod(ABC, Generic[ConfigT]):
    """A method that starts from a prior mask and learns; `maskgen.registry` names its subclasses.

    Attributes:
        config: the class of its settings.
    """

    config: ClassVar[type[LearnConfig]]

    @abstractmethod
    def learner(
        self,
        model: nn.Module,
        prior: Mapping[str, Codes],
        config: ConfigT,
        batches: Batches,
        world: World,
        pattern: Pattern = TWO_FOUR,
    ) -> MaskLearner:
        """Set up learning.

        Args:
            model: causal language model of `transformers`, frozen; changed in place.
            prior: layer name -> (N, K/M) codes, for exactly the layers to learn.
            config: an instance of `self.config`.
            batches: token ids by micro-batch number.
            world: this process among its peers.
            pattern: of the prior, and of what is learned.

        Raises:
            ValueError: the method learns no masks of this pattern.
        """
