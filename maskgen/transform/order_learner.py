"""Orders learned by gradient: a cost matrix a block of channels, and one optimiser step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn

from maskgen.format.pattern import Pattern
from maskgen.learning.batches import Batches
from maskgen.learning.distributed import World, adamw_state, load_adamw_state, make_adamw
from maskgen.learning.learner import StepReport
from maskgen.learning.loss import next_token_loss
from maskgen.learning.masked_linear import replace_module
from maskgen.learning.schedules import cosine, linear
from maskgen.transform.config import LearnedConfig
from maskgen.transform.groups import Groups, PermutationGroup, channel_order
from maskgen.transform.order_losses import ADAMW_EPSILON, LOSSES
from maskgen.transform.ordered_linear import BlockOrder, OrderedLinear, Stage
from maskgen.transform.scores import Scores, readers_in
from maskgen.transform.sinkhorn import SoftPermutation, hard_permutation, soft_permutation


@dataclass(slots=True)
class _Learned:
    """One group.

    Attributes:
        start: (blocks, size) the order that learning starts from, cut into blocks.
        costs: (blocks, size, size) parameter: of putting a channel of the start at a place.
        order: what the layers use.
        soft: this step's soft permutations.
    """

    group: PermutationGroup
    start: Tensor
    costs: nn.Parameter
    order: BlockOrder
    layers: list[OrderedLinear]
    soft: SoftPermutation | None = None


class OrderLearner:
    """A `maskgen.learning.learner.Learner` of orders; the model's weights stay as they are.

    Args:
        model: frozen causal language model, its linears replaced in place.
        groups: of the model's channels.
        scores: of the layers that masks will cover.
        start: group name -> (blocks, size) order to start from.
        pattern: of the masks.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Groups,
        scores: Scores,
        start: Mapping[str, Tensor],
        pattern: Pattern,
        config: LearnedConfig,
        batches: Batches,
    ) -> None:
        self._model, self._config, self._batches, self._pattern = model, config, batches, pattern
        model.requires_grad_(False)
        self._device = next(model.parameters()).device
        self._stage = Stage("ordered", config.gradient_rows, torch.Generator())
        generator = torch.Generator().manual_seed(config.seed)
        self._learned = {
            name: self._replace(groups[name], scores, order, generator)
            for name, order in start.items()
        }
        self._parameters = [learned.costs for learned in self._learned.values()]
        self._optimizer = make_adamw(
            self._parameters,
            World(),
            lr=config.learning_rate,
            eps=config.adamw_epsilon or ADAMW_EPSILON[config.loss],
            weight_decay=config.weight_decay,
        )

    @property
    def native(self) -> ModuleType | None:
        """The kernels of all gradients; None if some are torch's."""
        found = [layer.native for learned in self._learned.values() for layer in learned.layers]
        return found[0] if all(found) else None

    def _replace(
        self, group: PermutationGroup, scores: Scores, order: Tensor, generator: torch.Generator
    ) -> _Learned:
        size = block_size(group.size, self._config.block, self._pattern.m)
        start = order.to(self._device).reshape(-1, size)
        noise = torch.randn(len(start), size, size, generator=generator) * self._config.noise
        costs = noise - self._config.margin * torch.eye(size)
        places = torch.arange(size, device=self._device).repeat(len(start), 1)
        leaf = torch.zeros_like(costs, device=self._device, requires_grad=True)
        learned = _Learned(
            group, start, nn.Parameter(costs.to(self._device)), BlockOrder(places, leaf), []
        )
        for name in readers_in(group, scores):
            (place,) = [p for p in group.readers if p.tensor == f"{name}.weight"]
            columns = channel_order(group, place, order.cpu().numpy().astype("uint16"))
            split = (group.blocks, place.repeat, group.size // size, size)
            by_block = torch.from_numpy(columns).view(split).transpose(1, 2)
            layer = OrderedLinear(
                self._model.get_submodule(name),  # type: ignore[arg-type]
                scores[name],
                by_block.reshape(-1, place.repeat, size).to(self._device),
                learned.order,
                self._stage,
                self._pattern,
            )
            replace_module(self._model, name, layer)
            learned.layers.append(layer)
        return learned

    def step(self, step: int) -> StepReport:
        """One optimiser step over all micro-batches."""
        config = self._config
        self._stage.generator.manual_seed((config.seed << 32) + step)
        if step % config.assign_every == 0:
            self._assign()
        epsilon = linear(*config.epsilon, step / config.steps)
        for learned in self._learned.values():
            before = None if learned.soft is None else learned.soft.column
            soft = soft_permutation(
                learned.costs, epsilon, config.tolerance, config.iterations, before
            )
            learned.soft = soft
            learned.order.soft = soft.matrix.detach().requires_grad_()
        loss = sum(self._micro_batch(step, index) for index in range(config.micro_batches))
        self._optimizer.zero_grad()
        for learned in self._learned.values():
            gathered = learned.order.soft.grad
            if learned.soft is not None and gathered is not None:
                learned.soft.matrix.backward(gathered)  # type: ignore[no-untyped-call]
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, config.clip))
        rate = cosine(config.learning_rate, config.final_learning_rate, step / config.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        found = [learned.soft for learned in self._learned.values() if learned.soft is not None]
        return StepReport(
            loss / config.micro_batches,
            {
                "gradient_norm": norm,
                "learning_rate": rate,
                "epsilon": epsilon,
                "row_error": max(soft.row_error for soft in found),
                "iterations": max(soft.iterations for soft in found),
            },
        )

    def _micro_batch(self, step: int, index: int) -> float:
        batch = self._batches(step * self._config.micro_batches + index)
        return self.loss(torch.from_numpy(batch).to(self._device))

    def loss(self, ids: Tensor) -> float:
        """The loss on (batch, length) token ids in the order in use; adds to `slope`."""
        config = self._config
        return LOSSES[config.loss](self._model, ids, self._stage, 1 / config.micro_batches)

    def slope(self, name: str) -> Tensor:
        """(blocks, size, size) gradient of a group's permutation, gathered since the last step."""
        gathered = self._learned[name].order.soft.grad
        return torch.zeros_like(self._learned[name].costs) if gathered is None else gathered.clone()

    def places(self, name: str) -> Tensor:
        """(blocks, size) which channel of the start stands at each place of a group's blocks."""
        return self._learned[name].order.places

    def _assign(self) -> None:
        for name, learned in self._learned.items():
            self.use(name, hard_permutation(learned.costs))

    def use(self, name: str, places: Tensor) -> None:
        """Give a group the order of (blocks, size) `places`."""
        learned = self._learned[name]
        if torch.equal(places, learned.order.places):
            return
        learned.order.places = places
        for layer in learned.layers:
            layer.forget_mask()

    @torch.no_grad()
    def evaluate(self, windows: Sequence[Tensor]) -> float:
        """Mean loss of masks in the order that would be assigned now, nats a token."""
        self._assign()
        losses = [
            next_token_loss(self._model(input_ids=w, use_cache=False).logits, w)[1] for w in windows
        ]
        return sum(losses) / len(losses)

    def measure(self) -> dict[str, float]:
        """Share of channels that left the place of the start, and mean probability of places."""
        moved, sharp, channels = 0.0, 0.0, 0
        for learned in self._learned.values():
            places = learned.order.places
            stay = torch.arange(places.shape[1], device=places.device)
            moved += float((places != stay).sum())
            channels += places.numel()
            if learned.soft is not None:
                sharp += float(learned.soft.matrix.detach().gather(1, places[:, None]).sum())
        return {"changed": moved / channels, "sharpness": sharp / channels}

    def orders(self) -> dict[str, Tensor]:
        """Group name -> (blocks, size) old channels, in the order that would be assigned now."""
        self._assign()
        return {
            name: learned.start.gather(1, learned.order.places).view(
                learned.group.blocks, learned.group.size
            )
            for name, learned in self._learned.items()
        }

    def learned(self) -> dict[str, Tensor]:
        """Costs, and the assignment in use, which stays for some steps."""
        costs = {f"{name}.costs": own.costs.detach() for name, own in self._learned.items()}
        places = {f"{name}.places": own.order.places for name, own in self._learned.items()}
        columns = {
            f"{name}.column": own.soft.column
            for name, own in self._learned.items()
            if own.soft is not None
        }
        return {**costs, **places, **columns}

    def optimiser(self) -> dict[str, Tensor]:
        """AdamW's moments."""
        return adamw_state(self._optimizer, list(self._learned), self._parameters)

    def restore(self, learned: Mapping[str, Tensor], optimiser: Mapping[str, Tensor]) -> None:
        """Costs, assignment and moments of a checkpoint; without moments, the first two alone."""
        with torch.no_grad():
            for name, own in self._learned.items():
                own.costs.copy_(learned[f"{name}.costs"])
                self.use(name, learned[f"{name}.places"].to(self._device))
                column = learned.get(f"{name}.column")
                own.soft = None
                if column is not None:
                    own.soft = SoftPermutation(own.order.soft, column.to(self._device), 0.0, 0)
        if optimiser:
            load_adamw_state(self._optimizer, list(self._learned), self._parameters, optimiser)


def block_size(size: int, most: int, m: int) -> int:
    """The largest divisor of `size` that is a multiple of `m` and, if one is, at most `most`."""
    fitting = [d for d in range(m, size + 1, m) if size % d == 0]
    return max((d for d in fitting if d <= most), default=m)
