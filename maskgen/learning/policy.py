"""Mask logits learned from losses alone: sample a mask, run forward, reward, repeat (MaskPro)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from maskgen.format.pattern import TWO_FOUR, Pattern
from maskgen.format.placements import Codes
from maskgen.learning import mask_sampling
from maskgen.learning.batches import Batches
from maskgen.learning.codes import codes_array, codes_tensor, keep_tensor
from maskgen.learning.gradient_learner import prepare_model
from maskgen.learning.learner import Movement, StepReport
from maskgen.learning.loss import next_token_loss
from maskgen.learning.noise import NoiseKey, gumbels, layer_number
from maskgen.learning.prior import add_weight_prior
from maskgen.learning.relaxation import SequentialTopN


@dataclass(slots=True)
class SampledLayer:
    """A linear whose weight is overwritten with a masked copy before each forward pass.

    Attributes:
        weight: (out, in), the frozen original.
        logits: (out, M, in / M) fp32.
        prior: (out, in / M) codes.
        pattern: of the masks.
    """

    name: str
    linear: nn.Linear
    weight: Tensor
    logits: Tensor
    prior: Tensor
    pattern: Pattern

    def key(self, seed: int, step: int) -> NoiseKey:
        """The noise of this layer at a step."""
        return NoiseKey(seed, step, 0, layer_number(self.name))

    def sample(self, key: NoiseKey, native: ModuleType | None) -> None:
        """Put weight * (a sampled mask) into the linear."""
        if native is not None:
            native.sample_forward(
                self.weight, self.logits, self.linear.weight.detach(), key.seed, key.step,
                key.micro_batch, key.layer,
            )  # fmt: skip
            return
        scores = self.logits + self._noise(key)
        keep = mask_sampling.keep_from_planes(mask_sampling.top_n(scores, self.pattern.n))
        self.linear.weight.copy_(self.weight * keep)

    def update(self, key: NoiseKey, rate: float, native: ModuleType | None) -> None:
        """Add rate * d log p(the mask that `key` draws) / d logits; call before logits change."""
        if native is not None:
            native.sample_update(self.logits, rate, key.seed, key.step, key.micro_batch, key.layer)
            return
        noise = self._noise(key)
        if self.pattern == TWO_FOUR:
            drawn = mask_sampling.top_n(self.logits + noise, self.pattern.n)
            self.logits += rate * mask_sampling.log_probability_gradient(self.logits, drawn)
            return
        self.logits += rate * mask_sampling.order_gradient(self.logits, noise, self.pattern.n)

    def use(self, codes: Tensor) -> None:
        """Put weight * (a given mask) into the linear."""
        self.linear.weight.copy_(self.weight * keep_tensor(codes, self.pattern))

    def _noise(self, key: NoiseKey) -> Tensor:
        rows, planes, groups = self.logits.shape
        return gumbels(rows, planes, groups, key, self.logits.device)


class PolicyLearner:
    """One sampled mask a step; logits move along its log-probability's gradient.

        r_t = f(m_t, batch) - f(m_0, batch)
        tracker = decay * tracker + (1 - decay) * r_t
        logits -= rate * (r_t - tracker) * d log p(m_t) / d logits

    f(m_0) is measured for every window before the first step, and again, with m_0 the mask that
    has been learned so far and the tracker started afresh, every `refresh_every` steps.

    Args:
        pattern: of the prior and the masks.
        strength: the prior's kept weights start with this logit, the others with 0.
        refresh_every: 0 for never.
        debias: divide the tracker by the weight that it has given to residuals so far.
        clip: largest residual, in nats, that counts; a few weights cost more than all others.
    """

    def __init__(
        self,
        model: nn.Module,
        prior: Mapping[str, Codes],
        batches: Batches,
        *,
        seed: int,
        rate: float,
        strength: float,
        tracker_decay: float,
        refresh_every: int,
        debias: bool,
        clip: float,
        pattern: Pattern,
        native: ModuleType | None,
    ) -> None:
        prepare_model(model, activation_checkpointing=False)
        self._model = model
        self._batches = batches
        self._seed = seed
        self._rate = rate
        self._decay = tracker_decay
        self._refresh_every = refresh_every
        self._debias = debias
        self._clip = clip
        self._tracker = 0.0
        self.native = native
        self._device = next(model.parameters()).device
        self._pattern = pattern
        self._decide = SequentialTopN(native, pattern).decide
        self._baseline = torch.empty(0, dtype=torch.float64)
        self.layers = [self._layer(name, prior[name], strength) for name in sorted(prior)]

    def _layer(self, name: str, codes: Codes, strength: float) -> SampledLayer:
        linear = self._model.get_submodule(name)
        if not isinstance(linear, nn.Linear):
            raise ValueError(f"layer {name} is a {type(linear).__name__}, not a linear layer")
        known = codes_tensor(codes, self._pattern).to(self._device)
        rows, groups = known.shape
        logits = torch.zeros(rows, self._pattern.m, groups, device=self._device)
        add_weight_prior(logits, known, strength, self._pattern)
        weight = linear.weight.detach().contiguous()
        linear.weight = nn.Parameter(torch.empty_like(weight), requires_grad=False)
        return SampledLayer(name, linear, weight, logits, known, self._pattern)

    @torch.no_grad()
    def step(self, step: int) -> StepReport:
        """One sample, one forward pass, one update."""
        tracked = step % self._refresh_every if self._refresh_every else step
        if tracked == 0:
            self._baseline, self._tracker = self._measure_baseline(), 0.0
        for layer in self.layers:
            layer.sample(layer.key(self._seed, step), self.native)
        chosen = self._batches.indices(step)
        ids = self._ids(self._batches(step))
        loss = next_token_loss(self._model(input_ids=ids, use_cache=False).logits, ids)[1]
        residual = loss - float(self._baseline[torch.from_numpy(chosen)].mean())
        taken = min(max(residual, -self._clip), self._clip)
        self._tracker = self._decay * self._tracker + (1.0 - self._decay) * taken
        weight = 1.0 - self._decay ** (tracked + 1) if self._debias else 1.0
        advantage = taken - self._tracker / weight
        for layer in self.layers:
            layer.update(layer.key(self._seed, step), -self._rate * advantage, self.native)
        return StepReport(loss, {"residual": residual, "tracker": self._tracker})

    def _measure_baseline(self) -> Tensor:
        for layer in self.layers:
            layer.use(self._decide(layer.logits, layer.prior, 1.0)[0])
        losses: list[float] = []
        for windows in np.array_split(self._batches.windows, self._batches.epoch_length):
            ids = self._ids(windows)
            logits = self._model(input_ids=ids, use_cache=False).logits
            losses += [next_token_loss(logits[i, None], ids[i, None])[1] for i in range(len(ids))]
        return torch.tensor(losses, dtype=torch.float64)

    def _ids(self, windows: npt.NDArray[np.integer]) -> Tensor:
        return torch.from_numpy(windows.astype(np.int64)).to(self._device)

    @torch.no_grad()
    def evaluate(self, windows: Sequence[Tensor]) -> float:
        """Mean loss of the hard masks, nats a token."""
        for layer in self.layers:
            layer.use(self._decide(layer.logits, layer.prior, 1.0)[0])
        losses = [
            next_token_loss(self._model(input_ids=w, use_cache=False).logits, w)[1] for w in windows
        ]
        return sum(losses) / len(losses)

    def measure(self) -> dict[str, float]:
        """The numbers of `movement`."""
        return self.movement().numbers()

    def movement(self) -> Movement:
        """Share of changed groups and mean sharpness over all layers."""
        decided = [self._decide(layer.logits, layer.prior, 1.0) for layer in self.layers]
        groups = sum(codes.numel() for codes, _, _ in decided)
        changed = sum(changed for _, changed, _ in decided)
        return Movement(changed / groups, sum(sharp for _, _, sharp in decided) / groups)

    def codes(self) -> dict[str, Codes]:
        """Hard masks by layer name."""
        return {
            layer.name: codes_array(self._decide(layer.logits, layer.prior, 1.0)[0], self._pattern)
            for layer in self.layers
        }

    def learned(self) -> dict[str, Tensor]:
        """Logits by layer name."""
        return {layer.name: layer.logits for layer in self.layers}

    def optimiser(self) -> dict[str, Tensor]:
        """The tracker, and m_0's losses."""
        return {
            "tracker": torch.tensor(self._tracker, dtype=torch.float64),
            "baseline": self._baseline,
        }

    def restore(self, learned: Mapping[str, Tensor], optimiser: Mapping[str, Tensor]) -> None:
        """Take back what `learned` and `optimiser` gave."""
        for layer in self.layers:
            layer.logits.copy_(learned[layer.name])
        self._tracker = float(optimiser["tracker"])
        self._baseline = optimiser["baseline"]

    def state_bytes(self) -> dict[str, float]:
        """Bytes of training state per weight."""
        return {"logits": 4.0, "total": 4.0}
