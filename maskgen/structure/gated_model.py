"""A frozen model whose units are multiplied by gates, and whose linears may learn a low-rank
difference.

Gates act on the inputs of the linears that read a group's units (down for feed-forward channels, o
for heads). Switched off, the model answers as if it had never been touched, and is its own teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.transform.groups import PermutationGroup


class GatedModel:
    """Hooks on a model's linears.

    Args:
        model: causal language model; frozen here.
        groups: of its units, by name.
        rank: of the difference that every linear of those groups learns; 0 for none.
        seed: of those differences.

    Attributes:
        gates: group name -> (size,) what units are multiplied by in the next pass; none, if empty.
        low_rank: module name -> (rank, K) and (N, rank) parameters, their product 0 at first.
    """

    def __init__(
        self, model: nn.Module, groups: Mapping[str, PermutationGroup], rank: int, seed: int
    ) -> None:
        model.requires_grad_(False)
        self.model = model
        self.gates: Mapping[str, Tensor] = {}
        self.low_rank: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        self._on = True
        for name, group in groups.items():
            for place in group.readers:
                reader = model.get_submodule(place.tensor.removesuffix(".weight"))
                reader.register_forward_pre_hook(self._gate(name, place.unit))
        if not rank:
            return
        random = torch.Generator().manual_seed(seed)
        places = [place for group in groups.values() for place in group.places]
        modules = sorted({p.tensor.removesuffix(".weight") for p in places if _is_weight(p.tensor)})
        for module in modules:
            self._learn_difference(module, rank, random)

    def _gate(self, name: str, unit: int) -> Callable[..., tuple[Tensor, ...] | None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            gate = self.gates.get(name) if self._on else None
            if gate is None:
                return None
            by_channel = gate.repeat_interleave(unit).to(args[0].dtype)
            return (args[0] * by_channel, *args[1:])

        return hook

    def _learn_difference(self, name: str, rank: int, random: torch.Generator) -> None:
        """As LoRA (arXiv 2106.09685): the first factor is normal, the second 0."""
        linear: Any = self.model.get_submodule(name)
        rows, columns = linear.weight.shape
        first = torch.randn(rank, columns, generator=random) / columns**0.5
        device = linear.weight.device
        factors = nn.Parameter(first.to(device)), nn.Parameter(torch.zeros(rows, rank).to(device))
        self.low_rank[name] = factors

        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if not self._on:
                return None
            inner = F.linear(args[0], factors[0].to(args[0].dtype))
            return output + F.linear(inner, factors[1].to(args[0].dtype))

        linear.register_forward_hook(hook)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Without gates and differences."""
        before, self._on = self._on, False
        try:
            yield
        finally:
            self._on = before

    def __call__(self, ids: Tensor, hidden: bool) -> Any:
        """What the model makes of (batch, length) token ids, with all hidden states or without."""
        return self.model(input_ids=ids, use_cache=False, output_hidden_states=hidden)


def _is_weight(tensor: str) -> bool:
    return tensor.endswith(".weight")
