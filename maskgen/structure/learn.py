"""Choosing units: from a model directory, a budget and text to a structure."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import BaseModel
from rich.console import Console
from torch import Tensor

from maskgen.calibration import LayerProgress
from maskgen.format.change_file import ChangeRecord
from maskgen.format.digests import base_digest
from maskgen.format.model_directory import read_model_config
from maskgen.format.tokenizer import ModelTokenizer
from maskgen.learning.attention import use_blocked_attention
from maskgen.learning.batches import Batches
from maskgen.learning.distributed import World, refuse_ranks
from maskgen.learning.loop import RunOptions, run
from maskgen.structure.config import STRUCTURE_METHODS, GateConfig, GraspConfig, MaskPruneConfig
from maskgen.structure.file import Structure
from maskgen.structure.gate_learner import GateLearner, top, units_of
from maskgen.structure.gated_model import GatedModel
from maskgen.structure.grasp import Grasp
from maskgen.structure.latency import LayerLatency
from maskgen.structure.maskprune import MaskPrune
from maskgen.structure.removal import unit_groups, with_result
from maskgen.structure.unit_scores import UnitScores, flap, magnitude
from maskgen.structure.width import LayerShape
from maskgen.texts.text_sets import TextSet
from maskgen.texts.windows import TooLittleTextError, Windows, draw_windows, token_windows
from maskgen.torch_model import check_tokens, dtype_name, load_model
from maskgen.transform.architectures import model_groups
from maskgen.transform.groups import PermutationGroup

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Settings that change how a run reports but not what it learns.
_NOT_IDENTITY = {"checkpoint_every", "log_every"}

UnitGroups = Mapping[str, PermutationGroup]


@dataclass(frozen=True, slots=True)
class StructureRequest:
    """What choosing units needs besides model and text.

    Attributes:
        method: a name of `maskgen.structure.config.STRUCTURE_METHODS`.
        config: an instance of the method's settings.
        ratio: share of the decoder's linear weights (or of `latency`) that may be left.
        key_value_heads: that every layer keeps; None for all of them, or, where the settings say
            so, to learn it.
        multiple: that the feed-forward width is one of.
        latency: budget the time of an engine that was measured, in place of weights.
        windows: calibration windows drawn from the text.
        length: tokens in a window.
        seed: which windows are drawn, and all else that is random.
        dtype: of weights and activations (`torch_model.resolve_dtype`).
        folder: checkpoints and log of the methods that learn.
        resume: go on from the folder's newest checkpoint.
        device: torch device; by default CUDA if there is one.
    """

    method: str
    config: BaseModel
    ratio: float
    key_value_heads: int | None = None
    multiple: int = 64
    latency: LayerLatency | None = None
    windows: int = 32
    length: int = 1024
    seed: int = 0
    dtype: str = "auto"
    folder: Path | None = None
    resume: bool = False
    device: str | None = None


@dataclass(frozen=True, slots=True)
class StructureResult:
    """Units that were chosen.

    Attributes:
        structure: with the digest of its result.
        share: of the decoder's linear weights that is left.
        latency_share: of the time that was budgeted; None if weights were.
        tokens: that calibration and learning saw.
        seconds: wall time without loading; that of a run that was resumed included.
    """

    structure: Structure
    share: float
    latency_share: float | None
    tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Chosen:
    kept: Mapping[str, Tensor]
    scales: Mapping[str, Tensor]
    low_rank: Mapping[str, tuple[Tensor, Tensor]]
    tokens: int
    earlier_seconds: float = 0.0


def learn_structure(
    model_dir: Path,
    texts: TextSet | None,
    request: StructureRequest,
    progress: LayerProgress = lambda done, count, name: None,
    console: Console | None = None,
) -> StructureResult:
    """Choose the units of a model that stay, the same number in every layer.

    Args:
        texts: calibration text; None for magnitude, which needs none.
        progress: called after every decoder layer of the calibration pass.
        console: on which methods that learn report; None for nowhere.

    Raises:
        TransformError: the model's architecture is not in the table of groups.
        StructureError: the ratio, or the number of heads, cannot be met.
        TooLittleTextError, ModelDirectoryError: as `maskgen.prune.prune`.
        LearningStoppedError, CheckpointError: as `maskgen.learning.loop.run`.
        ValueError: text or folder is missing, or the text has tokens that the model has not.
    """
    table, shape = model_groups(model_dir), LayerShape.of(read_model_config(model_dir))
    if request.latency is not None:
        shape = request.latency.applied(shape)
    groups = unit_groups(table.groups)
    shape.widest(request.ratio, request.key_value_heads, request.multiple)  # or refuse now
    if not STRUCTURE_METHODS[request.method].uses_text:
        texts = None
    elif texts is None:
        raise ValueError(f"{request.method} needs calibration text")
    model = load_model(model_dir, request.dtype, request.device)
    start = time.perf_counter()
    chosen = _choose(model, model_dir, groups, shape, texts, request, progress, console)
    record = ChangeRecord(
        base_digest(model_dir),
        table.architecture,
        request.method,
        request.seed,
        None if texts is None else texts.digest,
    )
    kept = {
        name: np.flatnonzero(k.cpu().numpy()).astype(np.uint16) for name, k in chosen.kept.items()
    }
    structure = Structure(
        kept,
        {name: _numpy(scale)[kept[name]] for name, scale in chosen.scales.items()},
        {name: (_numpy(a), _numpy(b)) for name, (a, b) in chosen.low_rank.items()},
        record,
    )
    seconds = time.perf_counter() - start + chosen.earlier_seconds
    return StructureResult(
        with_result(model_dir, structure),
        shape.share(structure.width),
        None if request.latency is None else shape.cost_share(structure.width),
        chosen.tokens,
        seconds,
    )


def _choose(
    model: PreTrainedModel,
    model_dir: Path,
    groups: UnitGroups,
    shape: LayerShape,
    texts: TextSet | None,
    request: StructureRequest,
    progress: LayerProgress,
    console: Console | None,
) -> _Chosen:
    config = request.config
    method = config.start if isinstance(config, GateConfig) else request.method
    windows = None
    if method == "flap" and texts is not None:
        windows = token_windows(ModelTokenizer(model_dir), texts.texts, request.length)
        check_tokens(model, windows)
        windows = draw_windows(windows, request.windows, request.seed)
        scores = flap(model, groups, windows, progress)
    else:
        scores = magnitude(model, groups)
    tokens = 0 if windows is None else windows.size
    if isinstance(config, GateConfig) and texts is not None:
        return _learn(model, model_dir, groups, shape, scores, tokens, texts, request, console)
    width = shape.widest(request.ratio, request.key_value_heads, request.multiple)
    kept = {name: top(scores[name], units_of(name, width)) for name in groups}
    return _Chosen(kept, {}, {}, tokens)


def _learn(
    model: PreTrainedModel,
    model_dir: Path,
    groups: UnitGroups,
    shape: LayerShape,
    scores: UnitScores,
    tokens: int,
    texts: TextSet,
    request: StructureRequest,
    console: Console | None,
) -> _Chosen:
    config = request.config
    if not isinstance(config, GateConfig) or request.folder is None:
        raise ValueError(f"{request.method} learns gates, and needs a folder for checkpoints")
    refuse_ranks(request.method)
    aside, rest = _split(model, model_dir, texts, config)
    batches = Batches(rest, config.batch_size, config.seed)
    use_blocked_attention(model, config.sequence_length)
    learner = _learner(model, groups, shape, scores, request, batches)
    options = RunOptions(
        request.folder,
        {
            "method": request.method,
            "base_digest": base_digest(model_dir),
            "text_digest": texts.digest,
            "width": [request.ratio, request.key_value_heads, request.multiple],
            "costs": astuple(shape.costs),
            "calibration": [request.windows, request.length, request.seed],
            "dtype": dtype_name(model),
            **{k: v for k, v in config.model_dump().items() if k not in _NOT_IDENTITY},
        },
        title="gates",
        resume=request.resume,
        held_out=[torch.from_numpy(window[None]).long().to(model.device) for window in aside],
        held_out_every=config.held_out_every,
        divergence=config.divergence,
    )
    begin = time.perf_counter()
    outcome = run(learner, config, options, World(), console or Console(quiet=True))
    if not learner.kept:
        learner.choose()
    return _Chosen(
        learner.kept,
        {name: gate.detach() for name, gate in learner.gates.items()},
        {n: (a.detach(), b.detach()) for n, (a, b) in learner.gated.low_rank.items()},
        tokens + outcome.steps * config.tokens_per_step,
        max(0.0, outcome.seconds - (time.perf_counter() - begin)),
    )


def _learner(
    model: PreTrainedModel,
    groups: UnitGroups,
    shape: LayerShape,
    scores: UnitScores,
    request: StructureRequest,
    batches: Batches,
) -> GateLearner:
    config, heads = request.config, request.key_value_heads
    if isinstance(config, MaskPruneConfig):
        if not config.learn_heads:
            heads = shape.full.key_value_heads if heads is None else heads
        elif heads is not None:
            raise ValueError(
                f"{heads} heads are asked for, and learn_heads is on: give one of them"
            )
        gated = GatedModel(model, groups, config.rank, config.seed)
        return MaskPrune(
            gated, groups, scores, shape, request.ratio, heads, request.multiple, config, batches
        )
    if isinstance(config, GraspConfig):
        width = shape.widest(request.ratio, heads, request.multiple)
        gated = GatedModel(model, groups, 0, config.seed)
        return Grasp(gated, groups, scores, width, config, batches)
    raise ValueError(f"{request.method} has settings of another method")


def _split(
    model: PreTrainedModel, model_dir: Path, texts: TextSet, config: GateConfig
) -> tuple[Windows, Windows]:
    windows = token_windows(ModelTokenizer(model_dir), texts.texts, config.sequence_length)
    check_tokens(model, windows)
    if len(windows) <= config.held_out_windows:
        raise TooLittleTextError(
            f"the text has {len(windows)} sequences of {config.sequence_length} tokens, of which"
            f" {config.held_out_windows} would be set aside; give more text"
        )
    windows = draw_windows(windows, len(windows), config.seed)
    return windows[: config.held_out_windows], windows[config.held_out_windows :]


def _numpy(values: Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    return values.detach().float().cpu().numpy()
