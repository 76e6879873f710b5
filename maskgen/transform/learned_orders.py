"""A run that learns orders: text, checkpoints, and the step that held-out text liked best."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import Tensor

from maskgen.format.digests import base_digest
from maskgen.format.tokenizer import ModelTokenizer
from maskgen.learning.attention import use_blocked_attention
from maskgen.learning.batches import Batches
from maskgen.learning.distributed import World, refuse_ranks
from maskgen.learning.loop import RunOptions, run
from maskgen.learning.native import describe
from maskgen.texts.text_sets import TextSet
from maskgen.texts.windows import TooLittleTextError, draw_windows, token_windows
from maskgen.torch_model import check_tokens, dtype_name
from maskgen.transform.config import LearnedConfig
from maskgen.transform.groups import Groups
from maskgen.transform.order_learner import OrderLearner
from maskgen.transform.request import TransformRequest
from maskgen.transform.scores import Scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Settings that change how a run reports but not what it learns.
_NOT_IDENTITY = {"checkpoint_every", "log_every"}


@dataclass(frozen=True, slots=True)
class LearnedOrders:
    """What a run ended with.

    Attributes:
        orders: group name -> (blocks, size) old channels.
        best_step: after how many steps they did best on the sequences set aside.
        earlier_seconds: of steps before the run was resumed.
    """

    orders: Mapping[str, Tensor]
    best_step: float
    earlier_seconds: float


def learn_orders(
    model: PreTrainedModel,
    model_dir: Path,
    groups: Groups,
    scores: Scores,
    start: Mapping[str, Tensor],
    texts: TextSet | None,
    request: TransformRequest,
    console: Console | None,
) -> LearnedOrders:
    """Learn orders from those in `start`.

    Args:
        model: changed in place.
        scores: of the layers that masks will cover.
        start: group name -> (blocks, size) order.

    Raises:
        LearningStoppedError, CheckpointError: as `maskgen.learning.loop.run`.
        TooLittleTextError: the text does not fill the sequences that are set aside, and one more.
        ValueError: there is no text, or no folder for checkpoints; or there are several ranks.
    """
    config = request.config
    if not isinstance(config, LearnedConfig) or texts is None or request.folder is None:
        raise ValueError("learned orders need text, and a folder for checkpoints")
    refuse_ranks("learning orders")
    if not start:
        return LearnedOrders({}, 0.0, 0.0)
    attention = use_blocked_attention(model, config.sequence_length)
    shown = console or Console(quiet=True)
    windows = token_windows(ModelTokenizer(model_dir), texts.texts, config.sequence_length)
    check_tokens(model, windows)
    if len(windows) <= config.held_out_windows:
        raise TooLittleTextError(
            f"the text has {len(windows)} sequences of {config.sequence_length} tokens, of which"
            f" {config.held_out_windows} would be set aside; give more text"
        )
    windows = draw_windows(windows, len(windows), config.seed)
    aside, rest = windows[: config.held_out_windows], windows[config.held_out_windows :]
    learner = OrderLearner(
        model,
        groups,
        scores,
        start,
        request.pattern,
        config,
        Batches(rest, config.batch_size, config.seed),
    )
    said = f"learning orders by {config.loss}; {attention}; gradients by {describe(learner.native)}"
    shown.print(said, highlight=False, soft_wrap=True)
    options = RunOptions(
        request.folder,
        _identity(request, config, base_digest(model_dir), texts, dtype_name(model)),
        title="order",
        resume=request.resume,
        held_out=[torch.from_numpy(window[None]).long().to(model.device) for window in aside],
        held_out_every=config.held_out_every,
        keep_best=True,
        divergence=config.divergence,
    )
    begin = time.perf_counter()
    outcome = run(learner, config, options, World(), shown)
    earlier = max(0.0, outcome.seconds - (time.perf_counter() - begin))
    return LearnedOrders(learner.orders(), float(outcome.best_step or 0), earlier)


def _identity(
    request: TransformRequest, config: LearnedConfig, base: str, texts: TextSet, dtype: str
) -> dict[str, Any]:
    layers = request.layers
    return {
        "method": request.method,
        "pattern": str(request.pattern),
        "base_digest": base,
        "text_digest": texts.digest,
        "calibration": [request.windows, request.length, request.seed],
        "layers": [
            list(layers.include),
            list(layers.exclude),
            layers.dense_first,
            layers.dense_last,
        ],
        "dtype": dtype,
        **{k: v for k, v in config.model_dump().items() if k not in _NOT_IDENTITY},
    }
