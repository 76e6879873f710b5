"""How wide all decoder layers are: feed-forward channels and key-value heads.

Structured pruning here gives every layer the same width, since that is the only shape that engines
load without code of their own: `intermediate_size` and `num_key_value_heads` are one number each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_ROUNDING = 1e-6  # of a channel


class StructureError(ValueError):
    """A structure, its file, or a width is malformed or does not fit the model."""


@dataclass(frozen=True, slots=True)
class Width:
    """What is left of every decoder layer.

    Attributes:
        intermediate: feed-forward channels.
        key_value_heads: with the query heads that read them.
    """

    intermediate: int
    key_value_heads: int

    def __str__(self) -> str:
        return f"{self.intermediate} channels, {self.key_value_heads} key-value heads"


@dataclass(frozen=True, slots=True)
class UnitCosts:
    """What budgets count: weights of a layer, or the time that an engine takes for it.

    Attributes:
        channel: what a feed-forward channel costs.
        head: what a key-value head costs, with its query heads.
        fixed: what is left without either.
    """

    channel: float
    head: float
    fixed: float = 0.0

    def of(self, width: Width) -> float:
        """What a layer of that width costs."""
        heads = width.key_value_heads * self.head
        return self.fixed + width.intermediate * self.channel + heads


@dataclass(frozen=True, slots=True)
class LayerShape:
    """The sizes of one decoder layer; all have the same.

    Attributes:
        layers: how many there are.
        hidden: width of the residual stream.
        full: the width before anything is removed.
        repeat: query heads that read one key-value head.
        head: channels of a head.
        measured: what units cost in budgets; None counts their weights.
    """

    layers: int
    hidden: int
    full: Width
    repeat: int
    head: int
    measured: UnitCosts | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> LayerShape:
        """The sizes that a config.json states, which `model_groups` has checked.

        Raises:
            StructureError: the query heads do not divide among the key-value heads.
        """
        queries = config["num_attention_heads"]
        keys = config.get("num_key_value_heads") or queries
        if queries % keys:
            raise StructureError(f"{queries} query heads do not divide among {keys} of keys")
        return cls(
            config["num_hidden_layers"],
            config["hidden_size"],
            Width(config["intermediate_size"], keys),
            queries // keys,
            config.get("head_dim") or config["hidden_size"] // queries,
        )

    @property
    def channel_weights(self) -> int:
        """Weights of a feed-forward channel: a row of gate and up, a column of down."""
        return 3 * self.hidden

    @property
    def head_weights(self) -> int:
        """Weights of a key-value head with its query heads: rows of q, k and v, columns of o."""
        return self.hidden * self.head * (2 * self.repeat + 2)

    @property
    def costs(self) -> UnitCosts:
        """What budgets count."""
        return self.measured or UnitCosts(self.channel_weights, self.head_weights)

    def weights(self, width: Width) -> int:
        """Weights of one layer's linears."""
        return width.intermediate * self.channel_weights + width.key_value_heads * self.head_weights

    def share(self, width: Width) -> float:
        """How much is left of the linears' weights; the rest of the model is not counted."""
        return self.weights(width) / self.weights(self.full)

    def cost_share(self, width: Width) -> float:
        """How much is left of what layers cost: of their weights, unless something was measured."""
        return self.costs.of(width) / self.costs.of(self.full)

    def widest(self, ratio: float, key_value_heads: int | None = None, multiple: int = 64) -> Width:
        """The widest layers that cost no more than a share of what the whole ones cost.

        Args:
            ratio: the share, between 0 and 1.
            key_value_heads: to keep; None for all of them.
            multiple: that the feed-forward width is one of, unless it stays what it was.

        Raises:
            StructureError: a number is out of range, or not even `multiple` channels fit.
        """
        keys = self.full.key_value_heads if key_value_heads is None else key_value_heads
        self.check_heads(keys)
        if not 0 < ratio <= 1:
            raise StructureError(f"a ratio of {ratio} is not above 0 and at most 1")
        left = ratio * self.costs.of(self.full) - self.costs.of(Width(0, keys))
        # The ratio of a width itself must give that width, rounded as it is.
        channels = int(left / self.costs.channel + _ROUNDING)
        if channels >= self.full.intermediate:
            return Width(self.full.intermediate, keys)
        width = Width(channels // multiple * multiple, keys)
        if width.intermediate < multiple:
            smallest = self.cost_share(Width(multiple, keys))
            raise StructureError(
                f"a ratio of {ratio} leaves no {multiple} feed-forward channels beside {keys}"
                f" key-value heads; the smallest is {smallest:.3f}: give a higher ratio, or fewer"
                " heads"
            )
        return width

    def check(self, width: Width) -> None:
        """Raise StructureError unless layers can be made that wide."""
        self.check_heads(width.key_value_heads)
        if not 1 <= width.intermediate <= self.full.intermediate:
            raise StructureError(
                f"{width.intermediate} feed-forward channels are not between 1 and the model's"
                f" {self.full.intermediate}"
            )

    def check_heads(self, key_value_heads: int) -> None:
        """Raise StructureError unless the model has that many key-value heads."""
        if not 1 <= key_value_heads <= self.full.key_value_heads:
            raise StructureError(
                f"{key_value_heads} key-value heads are not between 1 and the model's"
                f" {self.full.key_value_heads}"
            )
