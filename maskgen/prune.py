"""One-shot pruning from a model directory to a mask (and, for some methods, a new checkpoint)."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maskgen.apply import Change, rewrite_weights
from maskgen.calibration import LayerProgress, PruneOutcome, prune_by_weight, prune_sequentially
from maskgen.experts import LEAST_ROWS, RareExperts
from maskgen.format.coverage import DenseWeight
from maskgen.format.digests import base_digest
from maskgen.format.mask import Mask
from maskgen.format.pattern import TWO_FOUR, Pattern
from maskgen.format.tokenizer import ModelTokenizer
from maskgen.methods.base import PruneMethod
from maskgen.registry import load_method
from maskgen.selection import LayerChoice, select_layers
from maskgen.texts.text_sets import TextSet
from maskgen.texts.windows import draw_windows, token_windows
from maskgen.torch_model import check_tokens, load_model


@dataclass(frozen=True, slots=True)
class PruneSettings:
    """What a one-shot run needs besides model and text.

    Attributes:
        method: a name of the registry, of kind `prune`.
        domain: label of the mask.
        windows: calibration windows drawn from the text.
        length: tokens in a window.
        seed: which windows are drawn.
        dtype: of weights and activations: `bf16`, `fp32`, `auto` (`torch_model.resolve_dtype`);
            statistics are fp32 at least.
        layers: which layers get a mask.
        pattern: how many weights of a group are kept.
        checkpoint: where a method that changes weights writes the new model directory.
        expert_rows: tokens that must choose an expert for its own statistics to count.
    """

    method: str
    domain: str = "general"
    windows: int = 64
    length: int = 1024
    seed: int = 0
    dtype: str = "auto"
    layers: LayerChoice = field(default_factory=LayerChoice)
    checkpoint: Path | None = None
    pattern: Pattern = TWO_FOUR
    expert_rows: int = LEAST_ROWS


@dataclass(frozen=True, slots=True)
class PruneResult:
    """A finished run.

    Attributes:
        mask: for the model directory, or for `checkpoint` when the method changed weights.
        dense: matrices inside decoder layers that stay dense, by name.
        tokens: calibration tokens used.
        seconds: wall time of the pass, without loading.
        rare: experts that too few tokens chose.
    """

    mask: Mask
    dense: dict[str, DenseWeight]
    tokens: int
    seconds: float
    rare: RareExperts


def prune(
    model_dir: Path,
    texts: TextSet | None,
    settings: PruneSettings,
    progress: LayerProgress = lambda done, count, name: None,
) -> PruneResult:
    """Compute a mask in one shot.

    Args:
        model_dir: Hugging Face model directory.
        texts: calibration text; None for methods that need none.
        settings: method and its options.
        progress: called after every decoder layer.

    Raises:
        UnknownMethodError: no such one-shot method.
        SelectionError: no layer can be masked, or the architecture does not fit the pass.
        TooLittleTextError: the text does not fill the windows.
        FileExistsError: the checkpoint directory exists already.
        ModelDirectoryError: see `maskgen.torch_model.load_model`.
        ValueError: text or checkpoint directory missing, or given to a method that has no use
            for it; or the text has tokens, or the windows positions, that the model has not.
    """
    method: PruneMethod[Any] = load_method(settings.method, "prune")(settings.pattern)
    _check(method, texts, settings)
    model = load_model(model_dir, settings.dtype)
    digest = base_digest(model_dir)
    selection = select_layers(model, settings.layers, settings.pattern)
    tokens = 0
    start = time.perf_counter()
    if texts is None:
        outcome = prune_by_weight(method, selection, progress)
    else:
        windows = token_windows(ModelTokenizer(model_dir), texts.texts, settings.length)
        check_tokens(model, windows)
        windows = draw_windows(windows, settings.windows, settings.seed)
        tokens = windows.size
        start = time.perf_counter()
        outcome = prune_sequentially(
            model, method, selection, windows, progress, settings.expert_rows
        )
    seconds = time.perf_counter() - start
    if settings.checkpoint is not None:
        digest = _write_checkpoint(model_dir, settings.checkpoint, outcome)
    mask = Mask(
        codes=outcome.codes,
        base_digest=digest,
        method=settings.method,
        domain=settings.domain,
        calibration_digest=None if texts is None else texts.digest,
        seed=settings.seed,
        pattern=settings.pattern,
        decoder_weights=selection.decoder_weights,
    )
    return PruneResult(mask, selection.dense, tokens, seconds, outcome.rare)


def _check(method: PruneMethod[Any], texts: TextSet | None, settings: PruneSettings) -> None:
    name = settings.method
    if method.uses_calibration and texts is None:
        raise ValueError(f"{name} needs calibration text")
    if not method.uses_calibration and texts is not None:
        raise ValueError(f"{name} uses no calibration text; leave it out")
    if method.updates_weights and settings.checkpoint is None:
        raise ValueError(f"{name} changes weights: name a directory for the new checkpoint")
    if not method.updates_weights and settings.checkpoint is not None:
        raise ValueError(f"{name} does not change weights, so there is no checkpoint to write")
    if settings.checkpoint is not None and settings.checkpoint.exists():
        raise FileExistsError(f"{settings.checkpoint} exists already; name a new directory")


def _write_checkpoint(model_dir: Path, out: Path, outcome: PruneOutcome) -> str:
    changes = {f"{n}.weight": Change.to(w.cpu().numpy()) for n, w in outcome.weights.items()}
    return rewrite_weights(model_dir, out, changes)
