"""Finding a transform: from a model directory and text to permutations and rotations."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskgen.calibration import LayerProgress
from maskgen.format.digests import base_digest
from maskgen.format.tokenizer import ModelTokenizer
from maskgen.methods.base import PruneMethod
from maskgen.registry import load_method
from maskgen.selection import LayerChoice, select_layers
from maskgen.texts.text_sets import TextSet
from maskgen.texts.windows import Windows, draw_windows, token_windows
from maskgen.torch_model import check_tokens, load_model
from maskgen.transform.absorb import with_result
from maskgen.transform.architectures import model_groups
from maskgen.transform.config import OrderConfig, RotationConfig, TransformConfig
from maskgen.transform.file import Transform
from maskgen.transform.groups import Groups, TransformError
from maskgen.transform.orders import find_orders, mean_retained, model_scores, reordered
from maskgen.transform.value_rotations import find_rotations

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class TransformRequest:
    """What finding a transform needs besides model and text.

    Attributes:
        method: a name of `maskgen.transform.config.TRANSFORM_METHODS`.
        config: an instance of the method's settings.
        windows: calibration windows drawn from the text.
        length: tokens in a window.
        seed: which windows are drawn, and all else that is random.
        dtype: of weights and activations (`torch_model.resolve_dtype`).
        layers: which layers will have masks.
    """

    method: str
    config: TransformConfig
    windows: int = 64
    length: int = 1024
    seed: int = 0
    dtype: str = "auto"
    layers: LayerChoice = field(default_factory=LayerChoice)


@dataclass(frozen=True, slots=True)
class TransformResult:
    """A transform that was found.

    Attributes:
        transform: with the digest of its result.
        tokens: calibration tokens used.
        seconds: wall time, without loading.
        facts: numbers of the method's own.
    """

    transform: Transform
    tokens: int
    seconds: float
    facts: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Found:
    permutations: dict[str, np.ndarray[Any, np.dtype[np.uint16]]]
    rotations: dict[str, np.ndarray[Any, np.dtype[np.float32]]]
    facts: dict[str, float]


def learn_transform(
    model_dir: Path,
    texts: TextSet | None,
    request: TransformRequest,
    progress: LayerProgress = lambda done, count, name: None,
) -> TransformResult:
    """Find a transform of a model.

    Args:
        texts: calibration text; None for scores that need none.

    Raises:
        TransformError: the model's architecture is not in the table, or none of its channels can
            be transformed.
        UnknownMethodError: there is no such score.
        SelectionError, TooLittleTextError, ModelDirectoryError: as `maskgen.prune.prune`.
        ValueError: text is missing, or has tokens that the model has not.
    """
    config, table = request.config, model_groups(model_dir)
    digest = base_digest(model_dir)
    model = load_model(model_dir, request.dtype)
    windows = _windows(model, model_dir, texts, request)
    start = time.perf_counter()
    if isinstance(config, RotationConfig):
        found = _rotations(model, table.groups, config, windows, progress)
    elif isinstance(config, OrderConfig):
        found = _orders(model, table.groups, config, request, windows, progress)
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
    seconds = time.perf_counter() - start
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
) -> _Found:
    layers = select_layers(model, request.layers).layers
    scores = model_scores(model, config.score, layers, windows, progress)
    orders = find_orders(groups, scores, config, request.seed)
    facts = {
        "retained_before": mean_retained(scores),
        "retained_after": mean_retained(reordered(groups, scores, orders)),
    }
    permutations = {name: order.cpu().numpy().astype(np.uint16) for name, order in orders.items()}
    return _Found(permutations, {}, facts)
