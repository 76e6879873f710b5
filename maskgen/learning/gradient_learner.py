"""Mask logits learned by gradient: the model, its layers, and one optimiser step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maskgen.format.placements import Codes
from maskgen.learning.active_groups import closest_groups
from maskgen.learning.codes import codes_array, codes_tensor
from maskgen.learning.distributed import (
    World,
    adamw_state,
    load_adamw_state,
    make_adamw,
)
from maskgen.learning.learner import Movement, StepReport
from maskgen.learning.loss import next_token_loss
from maskgen.learning.masked_linear import MaskedLinear, NoiseClock, replace_module
from maskgen.learning.relaxation import Relaxation, Softness
from maskgen.learning.schedules import cosine
from maskgen.selection import decoder_layers


@dataclass(frozen=True, slots=True)
class Schedule:
    """How soft the masks are at a step, and where new logits come from."""

    softness: Callable[[int], Softness]
    initial_logits: Callable[[str, Tensor], Tensor]  # (layer name, prior codes) -> logits


_NUMBERS, _CODES = ".active", ".settled_codes"
"""Of what else a checkpoint holds of a layer, after the layer's name."""

TokenBatches = Callable[[int], npt.NDArray[np.int64]]
"""Token ids of a micro-batch by its number, (sequences, length): `maskgen.learning.batches`."""


class GradientSettings(Protocol):
    """What the learner reads of `maskgen.learning.config.GradientConfig`.

    The learner needs torch and numpy alone, so it takes settings from elsewhere, too.
    """

    @property
    def steps(self) -> int: ...
    @property
    def micro_batches(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def final_learning_rate(self) -> float: ...
    @property
    def beta1(self) -> float: ...
    @property
    def beta2(self) -> float: ...
    @property
    def epsilon(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def clip(self) -> float: ...
    @property
    def distillation(self) -> float: ...
    @property
    def active_share(self) -> float: ...
    @property
    def active_after(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def sequences_at_once(self) -> int: ...
    @property
    def activation_checkpointing(self) -> bool: ...


def prepare_model(model: nn.Module, activation_checkpointing: bool) -> None:
    """Freeze everything and switch dropout off; optionally recompute decoder layers backwards."""
    model.requires_grad_(False)
    model.eval()
    if not activation_checkpointing:
        return
    for layer in decoder_layers(model)[1]:
        # All randomness is keyed (`noise.py`), so torch's generators need not be restored.
        layer.forward = partial(
            checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False
        )


class GradientLearner:
    """MaskLLM and RoI: relaxed masks, backpropagation, AdamW.

    Args:
        model: a causal language model of transformers; changed in place.
        prior: codes of every layer to learn; the layers that it does not list stay dense.
        relaxation: how logits become masks.
        schedule: softness over the run, and initial logits.

    Raises:
        ValueError: micro-batches cannot be dealt evenly, or groups are to be settled in a run of
            several ranks, which would have to choose the same.
    """

    def __init__(
        self,
        model: nn.Module,
        prior: Mapping[str, Codes],
        relaxation: Relaxation[Any],
        schedule: Schedule,
        config: GradientSettings,
        batches: TokenBatches,
        world: World,
    ) -> None:
        self._model = model
        self._config = config
        self._batches = batches
        self._world = world
        self._schedule = schedule
        self._mine = world.micro_batches(config.micro_batches)
        if config.active_share < 1 and world.size > 1:
            raise ValueError(
                f"active_share {config.active_share} needs a single process, this run has"
                f" {world.size} ranks; start it without torchrun, or with active_share 1"
            )
        self._at_once = config.sequences_at_once or config.batch_size
        self._device = next(model.parameters()).device
        self.native = relaxation.native
        prepare_model(model, config.activation_checkpointing)
        self.clock = NoiseClock(config.seed)
        self.layers = [
            self._replace(name, codes, relaxation) for name, codes in sorted(prior.items())
        ]
        self._largest_state: dict[str, float] = {}
        self._optimise()

    def _optimise(self) -> None:
        """An optimiser of the logits that there are now."""
        config = self._config
        self._learned = [la for la in self.layers if la.mask_logits.numel()]
        self._parameters = [layer.mask_logits for layer in self._learned]
        self._optimizer = make_adamw(
            self._parameters,
            self._world,
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.epsilon,
            weight_decay=config.weight_decay,
        )

    @torch.no_grad()
    def _settle(self) -> None:
        """Decide all groups but the closest, and drop what was kept of them."""
        self._largest_state = self.state_bytes()
        chosen = closest_groups([la.margins() for la in self.layers], self._config.active_share)
        for layer, numbers in zip(self.layers, chosen, strict=True):
            layer.settle(numbers)
        self._optimise()

    @torch.no_grad()
    def _step_without_moments(self, rate: float) -> None:
        """AdamW's step with both decays 0: moments of all groups would be half of the state."""
        config = self._config
        for parameter in self._parameters:
            gradient = parameter.grad
            if gradient is not None:
                parameter.mul_(1 - rate * config.weight_decay)
                parameter.addcdiv_(gradient, gradient.abs().add_(config.epsilon), value=-rate)

    def _replace(self, name: str, codes: Codes, relaxation: Relaxation[Any]) -> MaskedLinear:
        linear = self._model.get_submodule(name)
        if not isinstance(linear, nn.Linear):
            raise ValueError(f"layer {name} is a {type(linear).__name__}, not a linear layer")
        prior = codes_tensor(codes, relaxation.pattern).to(self._device)
        needed = (linear.out_features, linear.in_features // relaxation.pattern.m)
        if prior.shape != needed:
            raise ValueError(
                f"the prior of {name} is {tuple(prior.shape)}, the layer needs {needed}"
            )
        logits = self._schedule.initial_logits(name, prior).to(self._device)
        layer = MaskedLinear(name, linear, prior, logits, relaxation, self.clock)
        replace_module(self._model, name, layer)
        return layer

    def step(self, step: int) -> StepReport:
        """One optimiser step over this rank's micro-batches."""
        config = self._config
        if self._settling and step >= config.active_after:
            self._settle()
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad.zero_()
        at = self._schedule.softness(step)
        per_step = config.micro_batches
        passes = per_step * -(-config.batch_size // self._at_once)
        share = Softness(at.scale, at.tau, at.regularisation / passes)
        self.clock.step, self.clock.softness = step, share
        loss = sum(self._micro_batch(step, index) for index in self._mine)
        self._world.sum_gradients(self._parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, config.clip))
        rate = cosine(config.learning_rate, config.final_learning_rate, step / config.steps)
        if self._settling:
            self._step_without_moments(rate)
        else:
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            self._optimizer.step()
        return StepReport(
            self._world.sum(loss / per_step),
            {"gradient_norm": norm, "learning_rate": rate, "scale": at.scale, "tau": at.tau},
        )

    @property
    def _settling(self) -> bool:
        """Whether most groups are still to be decided."""
        return self._config.active_share < 1 and self.layers[0].active is None

    def _micro_batch(self, step: int, index: int) -> float:
        config = self._config
        self.clock.micro_batch = index
        batch = self._batches(step * config.micro_batches + index)
        ids = torch.from_numpy(batch).to(self._device)
        parts = torch.split(ids, self._at_once)
        return math.fsum(self._pass(part, len(part) / len(ids)) for part in parts)

    def _pass(self, ids: Tensor, share: float) -> float:
        """Add the gradient of this share of a micro-batch; that share of its loss, nats a token."""
        config = self._config
        teacher = self._dense_logits(ids) if config.distillation > 0 else None
        logits = self._model(input_ids=ids, use_cache=False).logits
        loss, text_loss = next_token_loss(logits, ids, teacher, config.distillation)
        (loss * share / config.micro_batches).backward()  # type: ignore[no-untyped-call]
        return text_loss * share

    @torch.no_grad()
    def _dense_logits(self, ids: Tensor) -> Tensor:
        self.clock.mask = "dense"
        try:
            logits: Tensor = self._model(input_ids=ids, use_cache=False).logits
        finally:
            self.clock.mask = "relaxed"
        return logits

    @torch.no_grad()
    def evaluate(self, windows: Sequence[Tensor]) -> float:
        """Mean loss of the hard masks, nats a token."""
        self.clock.mask = "decided"
        try:
            losses = [
                next_token_loss(self._model(input_ids=w, use_cache=False).logits, w)[1]
                for w in windows
            ]
        finally:
            self.clock.mask = "relaxed"
        return sum(losses) / len(losses)

    def measure(self) -> dict[str, float]:
        """The numbers of `movement`."""
        return self.movement().numbers()

    def movement(self) -> Movement:
        """Share of changed groups and mean sharpness over all layers."""
        decided = [layer.decide() for layer in self.layers]
        groups = sum(codes.numel() for codes, _, _ in decided)
        changed = sum(changed for _, changed, _ in decided)
        return Movement(changed / groups, sum(sharp for _, _, sharp in decided) / groups)

    def codes(self) -> dict[str, Codes]:
        """Hard masks by layer name."""
        return {
            layer.name: codes_array(layer.decide()[0], layer.relaxation.pattern)
            for layer in self.layers
        }

    def learned(self) -> dict[str, Tensor]:
        """Logits by layer name; once groups are settled, also which are not, and their codes."""
        found = {layer.name: layer.mask_logits.detach() for layer in self.layers}
        for layer in self.layers:
            if layer.active is not None:
                found[layer.name + _NUMBERS] = layer.active.numbers
                found[layer.name + _CODES] = layer.active.codes
        return found

    def optimiser(self) -> dict[str, Tensor]:
        """This rank's AdamW moments."""
        return adamw_state(self._optimizer, [la.name for la in self._learned], self._parameters)

    def restore(self, learned: Mapping[str, Tensor], optimiser: Mapping[str, Tensor]) -> None:
        """Logits and AdamW moments from a checkpoint."""
        with torch.no_grad():
            for layer in self.layers:
                if (numbers := learned.get(layer.name + _NUMBERS)) is not None:
                    self._largest_state = self._largest_state or self.state_bytes()
                    codes = learned[layer.name + _CODES]
                    layer.settle(numbers.to(self._device), codes.to(self._device))
                layer.mask_logits.copy_(learned[layer.name])
        if self._largest_state:
            self._optimise()
        names = [layer.name for layer in self._learned]
        load_adamw_state(self._optimizer, names, self._parameters, optimiser)

    def state_bytes(self) -> dict[str, float]:
        """Bytes of training state per weight, by part, when they were the most.

        Logits, gradient and AdamW's two moments; before groups are settled without moments,
        afterwards of the active ones, with their numbers.
        """
        weights = sum(layer.weight.numel() for layer in self.layers)
        per_weight = sum(parameter.numel() for parameter in self._parameters) * 4 / weights
        parts = {"logits": per_weight, "gradient": per_weight}
        if not self._settling:
            parts["adamw"] = 2 * per_weight
        if self._largest_state:
            numbers = sum(len(la.active) for la in self.layers if la.active is not None)
            parts["numbers"] = numbers * 8 / weights
        found = {**parts, "total": sum(parts.values())}
        return max(self._largest_state, found, key=lambda parts: parts.get("total", 0.0))
