"""End-to-end tuning of kept weights, norms and biases: cross entropy mixed with KL to the dense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from maskgen.learning.batches import Batches
from maskgen.learning.distributed import World, adamw_state, load_adamw_state, make_adamw
from maskgen.learning.learner import StepReport
from maskgen.learning.loss import next_token_loss
from maskgen.learning.schedules import cosine
from maskgen.recovery.config import RecoverConfig
from maskgen.recovery.parameters import Tuned


class Tuning:
    """A `maskgen.learning.learner.Learner` that tunes a masked model.

    AdamW keeps fp32 masters, which the model's parameters are; products may run in bf16 under
    autocast. Gradients of dropped weights are zeroed, so that AdamW leaves them at zero.

    Args:
        model: the masked model in fp32, changed in place.
        dense: the teacher; None if the loss has no KL.
        tuned: what changes.
        bf16: compute in bf16.
        world: the ranks among which micro-batches, held-out windows and AdamW's state are divided.

    Raises:
        ValueError: micro-batches cannot be dealt evenly.
    """

    def __init__(
        self,
        model: nn.Module,
        dense: nn.Module | None,
        tuned: Mapping[str, Tuned],
        config: RecoverConfig,
        batches: Batches,
        bf16: bool,
        world: World,
    ) -> None:
        self._world, self._mine = world, world.micro_batches(config.micro_batches)
        self._model, self._dense, self._tuned = model, dense, tuned
        self._config, self._batches, self._bf16 = config, batches, bf16
        self._parameters = [t.parameter for t in tuned.values()]
        self._device = self._parameters[0].device
        for parameter in self._parameters:
            parameter.requires_grad_(True)
        self._optimizer = make_adamw(
            self._parameters,
            world,
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            eps=config.epsilon,
            weight_decay=config.weight_decay,
        )

    def step(self, step: int) -> StepReport:
        """One optimiser step over this rank's micro-batches."""
        config = self._config
        self._optimizer.zero_grad()
        loss = sum(self._micro_batch(step, index) for index in self._mine)
        self._world.sum_gradients(self._parameters)
        for tuned in self._tuned.values():
            if tuned.dropped is not None and tuned.parameter.grad is not None:
                tuned.parameter.grad.masked_fill_(tuned.dropped, 0)
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, config.clip))
        rate = self._rate(step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        return StepReport(
            self._world.sum(loss / config.micro_batches),
            {"gradient_norm": norm, "learning_rate": rate},
        )

    def _rate(self, step: int) -> float:
        config = self._config
        rate = cosine(config.learning_rate, config.final_learning_rate, step / config.steps)
        return rate * min(1.0, (step + 1) / (config.warm_up + 1))

    def _micro_batch(self, step: int, index: int) -> float:
        config = self._config
        batch = self._batches(step * config.micro_batches + index)
        ids = torch.from_numpy(batch).to(self._device)
        teacher = None
        if self._dense is not None:
            with torch.no_grad():
                teacher = self._dense(input_ids=ids, use_cache=False).logits
        loss, text_loss = next_token_loss(self._logits(ids), ids, teacher, config.distillation)
        (loss / config.micro_batches).backward()  # type: ignore[no-untyped-call]
        return text_loss

    def _logits(self, ids: Tensor) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            logits: Tensor = self._model(input_ids=ids, use_cache=False).logits
        return logits

    @torch.no_grad()
    def evaluate(self, windows: Sequence[Tensor]) -> float:
        """Mean loss, nats a token."""
        mine = windows[self._world.rank :: self._world.size]
        losses = [next_token_loss(self._logits(window), window)[1] for window in mine]
        return self._world.sum(sum(losses)) / len(windows)

    def measure(self) -> dict[str, float]:
        """Nothing beyond what every step reports."""
        return {}

    def learned(self) -> dict[str, Tensor]:
        """All tuned parameters."""
        return {name: tuned.parameter.detach() for name, tuned in self._tuned.items()}

    def optimiser(self) -> dict[str, Tensor]:
        """AdamW's moments."""
        return adamw_state(self._optimizer, list(self._tuned), self._parameters)

    def restore(self, learned: Mapping[str, Tensor], optimiser: Mapping[str, Tensor]) -> None:
        """Parameters and moments from a checkpoint; without moments, the parameters alone."""
        with torch.no_grad():
            for name, tuned in self._tuned.items():
                tuned.parameter.copy_(learned[name])
        if optimiser:
            load_adamw_state(self._optimizer, list(self._tuned), self._parameters, optimiser)
