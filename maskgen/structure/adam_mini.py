"""Adam with one second moment for a whole tensor, as Adam-mini (Zhang et al., arXiv 2406.16793).

Adam itself moves every gate at almost the same rate, whatever its gradient: units that do not
matter then wander as far as those that do. Here a gate moves in proportion to its gradient, and
only the layer's rate is normalised.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_BETA1, _BETA2, _EPSILON = 0.9, 0.95, 1e-12


class AdamMini:
    """Moves parameters against their gradients.

    Args:
        parameters: by name.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = parameters
        self._mean = {name: torch.zeros_like(p.detach()) for name, p in parameters.items()}
        self._square = dict.fromkeys(parameters, 0.0)
        self._steps = 0

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step at a rate; parameters without a gradient stay."""
        self._steps += 1
        for name, parameter in self._parameters.items():
            if parameter.grad is None:
                continue
            mean, gradient = self._mean[name], parameter.grad
            mean.lerp_(gradient, 1 - _BETA1)
            square = float(gradient.square().mean())
            self._square[name] += (1 - _BETA2) * (square - self._square[name])
            root = (self._square[name] / (1 - _BETA2**self._steps)) ** 0.5 + _EPSILON
            parameter.sub_(mean, alpha=rate / (1 - _BETA1**self._steps) / root)

    def zero_grad(self) -> None:
        """Forget gradients."""
        for parameter in self._parameters.values():
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """Moments, by `NAME.mean` and `NAME.square`, and how many steps there were."""
        found = {f"{name}.mean": mean for name, mean in self._mean.items()}
        squares = {
            f"{name}.square": torch.tensor([s], dtype=torch.float64)
            for name, s in self._square.items()
        }
        return {**found, **squares, "gates.steps": torch.tensor([self._steps])}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """What `state` gave."""
        for name, mean in self._mean.items():
            mean.copy_(state[f"{name}.mean"])
            self._square[name] = float(state[f"{name}.square"])
        self._steps = int(state["gates.steps"])
