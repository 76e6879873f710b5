"""Block-wise reconstruction: every masked attention and MLP block learns its dense outputs.

For each block in turn: a share of the layer-wise least squares step on its kept weights, then, if
asked for, AdamW on the squared error of the block's outputs. Blocks are seen apart, so that one
costs little memory and needs little text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maskgen.calibration import LayerPass, embed, run_layer
from maskgen.experts import RareExperts
from maskgen.learning.learner import StepReport
from maskgen.least_squares import damped, kept_weights_update
from maskgen.methods.sparsegpt import Hessian
from maskgen.recovery.blocks import BlockData, DecoderBlock, blocks_of, call_block, recording
from maskgen.recovery.config import RecoverConfig
from maskgen.recovery.parameters import Tuned
from maskgen.selection import decoder_layers
from maskgen.texts.windows import Windows

_JUDGED = 4  # windows that a block's error is measured on


class Reconstruction:
    """A `maskgen.learning.learner.Learner` whose step is one block.

    Args:
        model: the masked model, changed in place.
        dense: the model as it was.
        keep: layer name -> (N, K) bool.
        tuned: what may change.
        windows: the text.
        config: of the run.
        bf16: compute in bf16.

    Attributes:
        blocks: in the order of the steps.
        rare: experts that too few tokens of the text chose; they are solved for on all.
    """

    def __init__(
        self,
        model: nn.Module,
        dense: nn.Module,
        keep: Mapping[str, Tensor],
        tuned: Mapping[str, Tuned],
        windows: Windows,
        config: RecoverConfig,
        bf16: bool,
    ) -> None:
        self._model, self._dense, self._bf16 = model, dense, bf16
        self._keep, self._tuned = keep, tuned
        self._windows, self._config = windows, config
        self.blocks = blocks_of(model, keep)
        self.rare = RareExperts()
        self._hidden: list[Tensor] = []
        self._arguments: list[dict[str, object]] = []
        self._layer = -1  # whose input `_hidden` is
        self._recorded: dict[str, BlockData] = {}
        self._moments: dict[str, Tensor] = {}  # of the inputs of its linears
        self._done: set[str] = set()

    def step(self, step: int) -> StepReport:
        """Reconstruct block number `step`; the loss is its squared error, a share of its power."""
        block = self.blocks[step]
        self._record(block.layer)
        data = self._recorded.pop(block.name)
        module = self._model.get_submodule(block.name)
        masked = self._error(module, data)
        self._least_squares(block)
        solved = self._error(module, data)
        self._descend(step, module, block, data)
        self._done |= {n for n in self._tuned if n.startswith(f"{block.name}.")}
        numbers = {"masked": masked, "least_squares": solved, "tokens": self._windows.size}
        return StepReport(self._error(module, data), numbers)

    def measure(self) -> dict[str, float]:
        """Nothing beyond what every step reports."""
        return {}

    def learned(self) -> dict[str, Tensor]:
        """The parameters of all blocks that are done."""
        return {name: self._tuned[name].parameter.detach() for name in sorted(self._done)}

    def optimiser(self) -> dict[str, Tensor]:
        """Nothing: a block begins and ends within a step."""
        return {}

    def restore(self, learned: Mapping[str, Tensor], optimiser: Mapping[str, Tensor]) -> None:
        """Take back what `learned` gave."""
        with torch.no_grad():
            for name, value in learned.items():
                self._tuned[name].parameter.copy_(value)
        self._done = set(learned)

    def evaluate(self, windows: Sequence[Tensor]) -> float:
        """Not asked for: a block is judged by its own error."""
        raise NotImplementedError("blocks are judged by their own error")

    @torch.no_grad()
    def _record(self, layer: int) -> None:
        """Run the dense layer that the next block is in, and keep what its blocks do."""
        if layer == self._layer:
            return
        prefix, stack = decoder_layers(self._dense)
        if self._layer < 0:
            self._arguments, self._hidden = embed(self._dense, stack, self._windows)
            self._layer = 0
        followed = stack if self._config.inputs == "dense" else decoder_layers(self._model)[1]
        while self._layer < layer:
            self._hidden = self._run(followed[self._layer], self._hidden)
            self._layer += 1
        inside = [block for block in self.blocks if block.layer == layer]
        linears: dict[str, Any] = {
            name: self._dense.get_submodule(name) for block in inside for name in block.linears
        }
        dense = stack[layer]
        hidden = [states.to(next(dense.parameters()).dtype) for states in self._hidden]
        pass_ = LayerPass(f"{prefix}.{layer}", dense, self._arguments[layer], hidden)
        with recording(self._dense, inside, len(hidden)) as self._recorded:
            statistics = pass_.statistics(linears, Hessian, self.rare)
        self._moments = {n: s.sum for n, s in statistics.items() if isinstance(s, Hessian)}

    def _run(self, layer: nn.Module, hidden: Sequence[Tensor]) -> list[Tensor]:
        first = next(layer.parameters())
        arguments = self._arguments[self._layer]
        with torch.autocast(first.device.type, torch.bfloat16, enabled=self._bf16):
            return [run_layer(layer, states.to(first.dtype), arguments) for states in hidden]

    @torch.no_grad()
    def _least_squares(self, block: DecoderBlock) -> None:
        if not self._config.least_squares:
            return
        for name in block.linears:
            dense = self._dense.get_parameter(f"{name}.weight").float()
            update = kept_weights_update(dense, self._keep[name], damped(self._moments[name]))
            weight = self._tuned[f"{name}.weight"].parameter
            weight.add_(update.to(weight.dtype), alpha=self._config.least_squares)

    def _descend(self, step: int, module: nn.Module, block: DecoderBlock, data: BlockData) -> None:
        config = self._config
        inside = [t for n, t in self._tuned.items() if n.startswith(f"{block.name}.")]
        if not config.block_steps or not inside:
            return
        for tuned in inside:
            tuned.parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW(
            [t.parameter for t in inside],
            lr=config.block_learning_rate,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
            fused=True,
        )
        random = np.random.Generator(np.random.Philox(key=[config.seed, step]))
        count = len(data.inputs)
        for index in range(config.block_steps):
            rate = config.block_learning_rate * (1 - index / config.block_steps)
            optimizer.param_groups[0]["lr"] = rate
            chosen = random.choice(count, min(config.block_batch_size, count), replace=False)
            optimizer.zero_grad()
            for window in chosen.tolist():
                self._loss(module, data, window).backward()  # type: ignore[no-untyped-call]
            for tuned in inside:
                if tuned.dropped is not None and tuned.parameter.grad is not None:
                    tuned.parameter.grad.masked_fill_(tuned.dropped, 0)
            optimizer.step()
        for tuned in inside:
            tuned.parameter.requires_grad_(False)
            tuned.parameter.grad = None

    @torch.no_grad()
    def _error(self, module: nn.Module, data: BlockData) -> float:
        windows = range(min(len(data.inputs), _JUDGED))
        return sum(float(self._loss(module, data, window)) for window in windows) / len(windows)

    def _loss(self, module: nn.Module, data: BlockData, window: int) -> Tensor:
        target = data.targets[window].float()
        states = data.inputs[window].float()
        with torch.autocast(states.device.type, torch.bfloat16, enabled=self._bf16):
            output = call_block(module, states, data.arguments).float()
        return (output - target).square().mean() / target.square().mean().clamp_min(1e-12)
