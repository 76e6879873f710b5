"""The two stages of a recovery, each a run with checkpoints of its own: blocks, then tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import Tensor

from maskgen.format.tokenizer import ModelTokenizer
from maskgen.learning.attention import use_blocked_attention
from maskgen.learning.batches import Batches
from maskgen.learning.distributed import World
from maskgen.learning.loop import RunOptions, run
from maskgen.recovery.config import RecoverConfig
from maskgen.recovery.low_rank import add_low_rank, low_rank_parameters
from maskgen.recovery.parameters import Tuned
from maskgen.recovery.reconstruction import Reconstruction
from maskgen.recovery.request import RecoverRequest
from maskgen.recovery.tuning import Tuning
from maskgen.texts.text_sets import TextSet
from maskgen.texts.windows import draw_windows, token_windows
from maskgen.torch_model import check_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Settings that change how a run reports but not what it recovers.
_NOT_IDENTITY = {"checkpoint_every", "log_every"}
BLOCKS, TUNING = "blocks", "tuning"
"""Their folders in the run's."""


@dataclass(slots=True)
class RecoveryStages:
    """The stages of one recovery, and what they add up to.

    Attributes:
        tokenizer, texts: of the model, and what it is recovered on.
        request: what was asked for.
        identity: settings and digests that a resumed run must share.
        dtype: to compute in.
        world: this rank among its peers.
        console: on which progress is shown.
        tokens: that tuning saw, and those that blocks were reconstructed on.
        seconds: wall time of all steps.
        best_step: step of tuning that was kept; None if held-out text did not decide.
    """

    tokenizer: ModelTokenizer
    texts: TextSet
    request: RecoverRequest
    identity: dict[str, Any]
    dtype: str
    world: World
    console: Console
    tokens: int = 0
    seconds: float = 0.0
    best_step: int | None = None

    @property
    def options(self) -> RunOptions:
        """Where the stages have their folders."""
        return RunOptions(self.request.folder, self.identity, resume=self.request.resume)

    def reconstruct(
        self,
        model: PreTrainedModel,
        dense: PreTrainedModel,
        keep: Mapping[str, Tensor],
        tuned: Mapping[str, Tuned],
    ) -> None:
        """Every block by itself. Ranks do the same work, and go on with what the first one has."""
        config = self.request.config
        windows = token_windows(self.tokenizer, self.texts.texts, config.window_length)
        check_tokens(model, windows)
        windows = draw_windows(windows, config.windows, config.seed)
        blocks = Reconstruction(model, dense, keep, tuned, windows, config, self.dtype == "bf16")
        outcome = run(
            blocks,
            config.model_copy(update={"steps": len(blocks.blocks), "checkpoint_every": 1}),
            replace(self.options, folder=self.request.folder / BLOCKS, title=BLOCKS),
            self.world,
            self.console,
        )
        for line in blocks.rare.lines():
            self.console.print(line, highlight=False, soft_wrap=True)
        self.world.copy_from_first([t.parameter for t in tuned.values()])
        self.tokens, self.seconds = windows.size, outcome.seconds

    def tune(
        self,
        model: PreTrainedModel,
        dense: PreTrainedModel,
        keep: Mapping[str, Tensor],
        tuned: Mapping[str, Tuned],
    ) -> Mapping[str, Tuned]:
        """End to end; what was tuned, which may be low-rank differences in place of weights."""
        request, config = self.request, self.request.config
        batches = _batches(model, self.tokenizer, self.texts, config)
        teacher = dense if config.distillation else None
        for network in (model, dense):
            use_blocked_attention(network, config.sequence_length)
        if config.rank and config.weights:
            add_low_rank(model, keep, config.rank, config.seed)
            others = {n: t for n, t in tuned.items() if t.dropped is None}
            tuned = {**others, **low_rank_parameters(model)}
        bf16 = self.dtype == "bf16"
        tuning = Tuning(model, teacher, tuned, config, batches, bf16, self.world)
        outcome = run(
            tuning,
            config,
            replace(
                self.options,
                folder=request.folder / TUNING,
                identity={**self.identity, **_tuning_identity(request)},
                title=TUNING,
                tensorboard=request.tensorboard,
                held_out=_held_out(model, self.tokenizer, request),
                held_out_every=0 if request.held_out is None else request.held_out_every,
                keep_best=request.held_out is not None,
                patience=config.patience,
                divergence=config.divergence,
            ),
            self.world,
            self.console,
        )
        self.tokens += outcome.steps * config.tokens_per_step
        self.seconds += outcome.seconds
        self.best_step = outcome.best_step
        return tuned


def _tuning_identity(request: RecoverRequest) -> dict[str, Any]:
    """What tuning depends on beside what blocks do, which can be tuned again in another folder."""
    settings = request.config.model_dump()
    return {
        "held_out_digest": None if request.held_out is None else request.held_out.digest,
        "held_out": [request.held_out_every, request.held_out_windows],
        **{name: value for name, value in settings.items() if name not in _NOT_IDENTITY},
    }


def _batches(
    model: PreTrainedModel, tokenizer: ModelTokenizer, texts: TextSet, config: RecoverConfig
) -> Batches:
    windows = token_windows(tokenizer, texts.texts, config.sequence_length)
    check_tokens(model, windows)
    return Batches(windows, config.batch_size, config.seed)


def _held_out(
    model: PreTrainedModel, tokenizer: ModelTokenizer, request: RecoverRequest
) -> Sequence[Tensor]:
    if request.held_out is None:
        return ()
    windows = token_windows(tokenizer, request.held_out.texts, request.config.sequence_length)
    check_tokens(model, windows)
    count = min(request.held_out_windows, len(windows))
    chosen = [windows[index * len(windows) // count] for index in range(count)]
    return [torch.from_numpy(window[None]).long().to(model.device) for window in chosen]
