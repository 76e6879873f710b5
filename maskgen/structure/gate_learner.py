"""What learned gates have in common: the loss, the two phases of a run, and its state.

First gates decide which units stay. Then the units that are left are chosen, once, and their gates
(and low-rank differences) are tuned alone: they are what removal folds into the weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskgen.learning.batches import Batches
from maskgen.learning.distributed import World, adamw_state, load_adamw_state, make_adamw
from maskgen.learning.learner import StepReport
from maskgen.learning.loss import next_token_loss
from maskgen.learning.schedules import cosine
from maskgen.structure.adam_mini import AdamMini
from maskgen.structure.config import GateConfig
from maskgen.structure.file import FEED_FORWARD, HEADS
from maskgen.structure.gated_model import GatedModel
from maskgen.structure.width import Width
from maskgen.transform.groups import PermutationGroup

KEPT = "kept."
"""Before a group's name: which of its units are left, in a checkpoint."""


class GateLearner(ABC):
    """A `maskgen.learning.learner.Learner` of a gate for every unit.

    Args:
        gated: the model.
        groups: of its units.
        start: group name -> (size,) gates at the start.
        learning_rate: peak, of low-rank differences.
        batches: the text.

    Attributes:
        gates: group name -> (size,) parameter.
        kept: group name -> (size,) bool, the units that are left; empty before they are chosen.
    """

    def __init__(
        self,
        gated: GatedModel,
        groups: Mapping[str, PermutationGroup],
        start: Mapping[str, Tensor],
        config: GateConfig,
        learning_rate: float,
        batches: Batches,
    ) -> None:
        self.gated, self._batches, self._config = gated, batches, config
        self._device = next(gated.model.parameters()).device
        self.gates = {name: nn.Parameter(start[name].float().to(self._device)) for name in groups}
        self.kept: dict[str, Tensor] = {}
        factors = {
            f"{module}.{factor}": parameter
            for module, pair in gated.low_rank.items()
            for factor, parameter in zip(("first", "second"), pair, strict=True)
        }
        self._factors = factors
        self._rate = learning_rate
        self._gate_optimizer = AdamMini(self.gates)
        self._optimizer = None
        if factors:
            self._optimizer = make_adamw(
                list(factors.values()), World(), lr=learning_rate, weight_decay=0.0
            )

    @abstractmethod
    def width(self) -> Width:
        """That layers get, or would get now."""

    @abstractmethod
    def choosing(self) -> dict[str, Tensor]:
        """Group name -> (size,) what units are multiplied by while gates decide."""

    @abstractmethod
    def after_step(self, rate: float) -> dict[str, float]:
        """What follows an optimiser step of the first phase.

        Args:
            rate: of gates in that step.

        Returns:
            Numbers for the log.
        """

    @abstractmethod
    def on_choice(self, name: str) -> None:
        """Called for every group once its units are chosen, before their gates are tuned."""

    @property
    def first_steps(self) -> int:
        """Steps in which gates decide."""
        return round(self._config.steps * (1 - self._config.calibration))

    def step(self, step: int) -> StepReport:
        """One optimiser step over all micro-batches."""
        config = self._config
        if step >= self.first_steps and not self.kept:
            self.choose()
        self._use_gates()
        self._gate_optimizer.zero_grad()
        for parameter in self._factors.values():
            parameter.grad = None
        losses = [self._micro_batch(step, index) for index in range(config.micro_batches)]
        factor = cosine(1.0, 0.1, step / config.steps)
        self._gate_optimizer.step(config.gate_rate * factor)
        if self._optimizer is not None:
            torch.nn.utils.clip_grad_norm_(self._factors.values(), config.clip)
            for group in self._optimizer.param_groups:
                group["lr"] = self._rate * factor
            self._optimizer.step()
        extra = {} if self.kept else self.after_step(config.gate_rate * factor)
        text, hidden = (sum(values) / config.micro_batches for values in zip(*losses, strict=True))
        return StepReport(text, {"hidden": hidden, **extra})

    def _micro_batch(self, step: int, index: int) -> tuple[float, float]:
        config = self._config
        ids = torch.from_numpy(self._batches(step * config.micro_batches + index)).to(self._device)
        with torch.no_grad(), self.gated.whole():
            whole = self.gated(ids, hidden=config.hidden > 0)
        found = self.gated(ids, hidden=config.hidden > 0)
        loss, text = next_token_loss(found.logits, ids, whole.logits, config.distillation)
        hidden = torch.zeros(())
        if config.hidden:
            # The last is after the final norm; the first is the embedding, which is the same.
            pairs = list(zip(whole.hidden_states, found.hidden_states, strict=True))[1:-1]
            errors = [
                F.mse_loss(own.float(), target.float()) / target.float().square().mean()
                for target, own in pairs
            ]
            hidden = torch.stack(errors).mean() if errors else hidden
            loss = loss + config.hidden * hidden
        (loss / config.micro_batches).backward()  # type: ignore[no-untyped-call]
        return text, float(hidden.detach())

    def _use_gates(self) -> None:
        if self.kept:
            self.gated.gates = {n: gate * self.kept[n] for n, gate in self.gates.items()}
        else:
            self.gated.gates = self.choosing()

    @torch.no_grad()
    def choose(self) -> None:
        """Settle which units stay: in each layer, those with the highest scores."""
        width = self.width()
        for name in self.gates:
            self.kept[name] = top(self.scores(name), units_of(name, width))
            self.on_choice(name)

    def scores(self, name: str) -> Tensor:
        """(size,) how much a group's units are wanted now."""
        return self.gates[name].detach().abs()

    @torch.no_grad()
    def evaluate(self, windows: Sequence[Tensor]) -> float:
        """Mean loss with the units that would stay now, nats a token."""
        if self.kept:
            self._use_gates()
        else:
            width, gates = self.width(), self.choosing()
            self.gated.gates = {
                name: gates[name] * top(self.scores(name), units_of(name, width)) for name in gates
            }
        losses = [next_token_loss(self.gated(w, hidden=False).logits, w)[1] for w in windows]
        return sum(losses) / len(losses)

    def measure(self) -> dict[str, float]:
        """Nothing beyond what every step reports."""
        return {}

    def learned(self) -> dict[str, Tensor]:
        """Gates, differences, and the choice once it is made."""
        tensors = {name: p.detach() for name, p in {**self.gates, **self._factors}.items()}
        return {**tensors, **{f"{KEPT}{name}": kept.float() for name, kept in self.kept.items()}}

    def optimiser(self) -> dict[str, Tensor]:
        """The moments of both optimisers."""
        state = self._gate_optimizer.state()
        if self._optimizer is not None:
            state |= adamw_state(self._optimizer, list(self._factors), list(self._factors.values()))
        return state

    def restore(self, learned: Mapping[str, Tensor], optimiser: Mapping[str, Tensor]) -> None:
        """Everything of a checkpoint; without moments, what was learned alone."""
        with torch.no_grad():
            for name, parameter in {**self.gates, **self._factors}.items():
                parameter.copy_(learned[name])
        self.kept = {
            name: learned[f"{KEPT}{name}"].to(self._device) > 0
            for name in self.gates
            if f"{KEPT}{name}" in learned
        }
        if not optimiser:
            return
        self._gate_optimizer.restore(optimiser)
        if self._optimizer is not None:
            load_adamw_state(
                self._optimizer, list(self._factors), list(self._factors.values()), optimiser
            )


def units_of(group: str, width: Width) -> int:
    """How many units of a group a width keeps."""
    kind = group.rpartition(".")[2]
    return {FEED_FORWARD: width.intermediate, HEADS: width.key_value_heads}[kind]


def top(scores: Tensor, count: int) -> Tensor:
    """(size,) bool: the `count` largest; of equal ones, the first."""
    kept = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    kept[torch.sort(scores, descending=True, stable=True).indices[:count]] = True
    return kept
