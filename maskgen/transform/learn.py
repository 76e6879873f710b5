"""Finding a transform: from a model directory and text to permutations and rotations."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from torch import Tensor

from maskgen.calibration import LayerProgress
from maskgen.format.digests import base_digest
from maskgen.format.pattern import Pattern
from maskgen.format.tokenizer import ModelTokenizer
from maskgen.methods.base import PruneMethod
from maskgen.registry import load_method
from maskgen.selection import select_layers
from maskgen.texts.text_sets import TextSet
from maskgen.texts.windows import Windows, draw_windows, token_windows
from maskgen.torch_model import check_tokens, load_model
from maskgen.transform.absorb import with_result
from maskgen.transform.architectures import model_groups
from maskgen.transform.config import (
    LearnedConfig,
    OrderConfig,
    RotationConfig,
)
from maskgen.transform.file import Transform
from maskgen.transform.groups import Groups, TransformError
from maskgen.transform.learned_orders import LearnedOrders, learn_orders
from maskgen.transform.orders import find_orders, mean_retained, model_scores, reordered
from maskgen.transform.request import TransformRequest
from maskgen.transform.scores import Scores
from maskgen.transform.value_rotations import find_rotations

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class TransformResult:
    """A transform that was found.

    Attributes:
        transform: with the digest of its result.
        tokens: calibration tokens used.
        seconds: wall time without loading; that of a run that was resumed included.
        facts: numbers of the method's own.
    """

    transform: Transform
    tokens: int
    seconds: float
    facts: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Orders:
    scores: Scores
    orders: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class _Found:
    permutations: dict[str, np.ndarray[Any, np.dtype[np.uint16]]]
    rotations: dict[str, np.ndarray[Any, np.dtype[np.float32]]]
    facts: dict[str, float]
    earlier_seconds: float = 0.0


def learn_transform(
    model_dir: Path,
    texts: TextSet | None,
    request: TransformRequest,
    progress: LayerProgress = lambda done, count, name: None,
    console: Console | None = None,
) -> TransformResult:
    """Find a transform of a model.

    Args:
        texts: calibration text; None for scores that need none.
        progress: called after every decoder layer of the calibration pass.
        console: on which the method `learned` reports; None for nowhere.

    Raises:
        TransformError: the model's architecture is not in the table, or none of its channels can
            be transformed.
        UnknownMethodError: there is no such score.
        SelectionError, TooLittleTextError, ModelDirectoryError: as `maskgen.prune.prune`.
        LearningStoppedError, CheckpointError: as `maskgen.learning.loop.run`.
        ValueError: text or folder is missing, or the text has tokens that the model has not.
    """
    config, table = request.config, model_groups(model_dir)
    digest = base_digest(model_dir)
    model = load_model(model_dir, request.dtype, request.device)
    windows = _windows(model, model_dir, texts, request)
    start = time.perf_counter()
    if isinstance(config, RotationConfig):
        found = _rotations(model, table.groups, config, windows, progress)
    elif isinstance(config, OrderConfig):
        first = _orders(model, table.groups, config, request, windows, progress)
        if isinstance(config, LearnedConfig):
            learned = learn_orders(
                model, model_dir, table.groups, first.scores, first.orders, texts, request, console
            )
            found = _found(table.groups, first.scores, learned.orders, request.pattern, learned)
        else:
            found = _found(table.groups, first.scores, first.orders, request.pattern)
    else:
        raise TransformError(f"{request.method} has settings of another method")
    if not found.permutations and not found.rotations:
        raise TransformError(f"{request.method} found no channels to change in this model")
    transform = Transform(
        found.permutations,
        found.rotations,
        base_digest=digest,
        architecture=table.architecture,
        method=request.method,
        seed=request.seed,
        calibration_digest=None if windows is None or texts is None else texts.digest,
    )
    seconds = time.perf_counter() - start + found.earlier_seconds
    tokens = 0 if windows is None else windows.size
    return TransformResult(with_result(model_dir, transform), tokens, seconds, found.facts)


def _windows(
    model: PreTrainedModel, model_dir: Path, texts: TextSet | None, request: TransformRequest
) -> Windows | None:
    config = request.config
    if isinstance(config, OrderConfig):
        method: type[PruneMethod[Any]] = load_method(config.score, "prune")
        if not method.uses_calibration:
            return None
    if texts is None:
        raise ValueError(f"{request.method} needs calibration text")
    windows = token_windows(ModelTokenizer(model_dir), texts.texts, request.length)
    check_tokens(model, windows)
    return draw_windows(windows, request.windows, request.seed)


def _rotations(
    model: PreTrainedModel,
    groups: Groups,
    config: RotationConfig,
    windows: Windows | None,
    progress: LayerProgress,
) -> _Found:
    if windows is None:
        raise ValueError("rotations need calibration text")
    learned = find_rotations(model, groups, config, windows, progress)
    facts = {}
    if learned:
        facts = {
            "entropy_before": sum(found.before for found in learned.values()) / len(learned),
            "entropy_after": sum(found.after for found in learned.values()) / len(learned),
        }
    return _Found(
        {}, {name: found.rotation.cpu().numpy() for name, found in learned.items()}, facts
    )


def _orders(
    model: PreTrainedModel,
    groups: Groups,
    config: OrderConfig,
    request: TransformRequest,
    windows: Windows | None,
    progress: LayerProgress,
) -> _Orders:
    layers = select_layers(model, request.layers, request.pattern).layers
    scores = model_scores(model, config.score, layers, windows, progress)
    return _Orders(scores, find_orders(groups, scores, config, request.pattern, request.seed))


def _found(
    groups: Groups,
    scores: Scores,
    orders: Mapping[str, Tensor],
    pattern: Pattern,
    learned: LearnedOrders | None = None,
) -> _Found:
    facts = {
        "retained_before": mean_retained(scores, pattern),
        "retained_after": mean_retained(reordered(groups, scores, orders), pattern),
    }
    permutations = {name: order.cpu().numpy().astype(np.uint16) for name, order in orders.items()}
    if learned is None:
        return _Found(permutations, {}, facts)
    return _Found(
        permutations, {}, {**facts, "best_step": learned.best_step}, learned.earlier_seconds
    )
