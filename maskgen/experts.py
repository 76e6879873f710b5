"""Mixtures of experts in torch: experts as the linear layers that files and masks name.

transformers 5 fuses the experts of a decoder layer into parameters of three dimensions. Here each
expert is a module with linears of its own again (views of those parameters, so no memory is added),
and whatever works on linears works on experts: masks, statistics, learning.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from maskgen.format.experts import EXPERTS, ExpertNames

LEAST_ROWS = 256
"""Tokens that must have chosen an expert for its own statistics to count."""


class Expert(nn.Module):
    """One expert: down(act(gate x) * up x)."""

    def __init__(self, names: ExpertNames, gate_up: Tensor, down: Tensor, act: nn.Module) -> None:
        super().__init__()
        self._names, self._act = names, act
        width = down.shape[1]
        for name, weight in (
            (names.gate, gate_up[:width]),
            (names.up, gate_up[width:]),
            (names.down, down),
        ):
            self.add_module(name, _linear(weight))

    def forward(self, rows: Tensor) -> Tensor:
        """(rows, hidden) -> (rows, hidden)."""
        gate, up, down = (
            self.get_submodule(name)
            for name in (self._names.gate, self._names.up, self._names.down)
        )
        result: Tensor = down(self._act(gate(rows)) * up(rows))
        return result


class Experts(nn.ModuleList):
    """The experts of one layer, in place of the fused module of transformers.

    Attributes:
        rows: tokens that chose each expert since the counts were last set to zero.
        whole: experts that see all tokens, as calibration of rare ones needs; the answers stay
            those of the tokens that chose them.
    """

    def __init__(self, names: ExpertNames, fused: Any) -> None:
        matrices = zip(fused.gate_up_proj, fused.down_proj, strict=True)
        super().__init__(Expert(names, gate_up, down, fused.act_fn) for gate_up, down in matrices)
        self.rows = [0] * len(self)
        self.whole: frozenset[int] = frozenset()

    def forward(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """As the fused module: (tokens, hidden), (tokens, top k) numbers and weights."""
        result = torch.zeros_like(hidden)
        for number, expert in enumerate(self):
            token, place = torch.where(chosen == number)
            self.rows[number] += len(token)
            if number in self.whole:
                output = expert(hidden)[token]
            elif len(token):
                output = expert(hidden[token])
            else:
                continue
            weighted = output * weights[token, place, None]
            result.index_add_(0, token, weighted.to(result.dtype))
        return result


def _linear(weight: Tensor) -> nn.Linear:
    outputs, inputs = weight.shape
    with torch.device("meta"):
        linear = nn.Linear(inputs, outputs, bias=False)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def split_experts(model: nn.Module, stored: Collection[str]) -> None:
    """Take the experts of a model apart, in place; its modules then bear the names of its files.

    Experts that the files hold fused stay what they are, and so does every other model.

    Args:
        model: a causal language model of `transformers`.
        stored: names of the tensors in its files.
    """
    config: Any = getattr(model, "config", None)
    names = EXPERTS.get(getattr(config, "model_type", ""))
    if names is None:
        return
    stack: Any = model.get_submodule("model.layers")
    for index, layer in enumerate(stack):
        block = layer.mlp
        first = f"model.layers.{index}.{names.block}.experts.0.{names.gate}.weight"
        if first not in stored or not hasattr(block, "experts"):
            continue
        block.experts = Experts(names, block.experts)
        if names.block != "mlp":
            # The layer's own code calls its block `mlp`; the tree of modules goes by the files.
            del layer.mlp
            layer.add_module(names.block, block)
            object.__setattr__(layer, "mlp", block)


def experts_in(layer: nn.Module) -> dict[str, Experts]:
    """The mixtures inside a module, by their name in it."""
    return {name: m for name, m in layer.named_modules() if isinstance(m, Experts)}


@contextmanager
def whole(mixture: Experts, numbers: Iterable[int]) -> Iterator[None]:
    """Let some experts see all tokens."""
    mixture.whole = frozenset(numbers)
    try:
        yield
    finally:
        mixture.whole = frozenset()


@dataclass
class RareExperts:
    """Experts that too few calibration tokens chose: their statistics are of all tokens instead.

    Attributes:
        least: tokens below which an expert is rare.
        found: mixture's module name -> number of the expert -> tokens that chose it.
    """

    least: int = LEAST_ROWS
    found: dict[str, dict[int, int]] = field(default_factory=dict)

    def find(self, name: str, mixture: Experts, linears: Collection[str]) -> dict[int, list[str]]:
        """Note a mixture's rare experts; their numbers, and which of the `linears` are theirs."""
        theirs = {
            number: [n for n in linears if n.startswith(f"{name}.{number}.")]
            for number, rows in enumerate(mixture.rows)
            if rows < self.least
        }
        again = {number: names for number, names in theirs.items() if names}
        if again:
            self.found[name] = {number: mixture.rows[number] for number in again}
        return again

    def lines(self) -> list[str]:
        """A line for every mixture that has some."""
        return [
            f"{name}: fewer than {self.least} calibration tokens chose "
            + ", ".join(f"{number} ({rows})" for number, rows in experts.items())
            + ": these experts are judged on all tokens of the layer"
            for name, experts in self.found.items()
        ]
