"""Learning a mask: from a model directory, text and a prior to a mask."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from maskgen.format.coverage import dense_lines
from maskgen.format.digests import base_digest
from maskgen.format.mask import Mask, MaskFileError, check_base
from maskgen.format.tokenizer import ModelTokenizer
from maskgen.learning.allocator import keep_freed_memory
from maskgen.learning.attention import use_blocked_attention
from maskgen.learning.batches import Batches
from maskgen.learning.config import GradientConfig, LearnConfig
from maskgen.learning.distributed import world_from_environment
from maskgen.learning.loop import RunOptions, run
from maskgen.learning.method import LearnMethod
from maskgen.learning.native import describe
from maskgen.learning.norms import use_native_norms
from maskgen.registry import load_method
from maskgen.selection import LayerChoice, select_layers
from maskgen.texts.text_sets import TextSet
from maskgen.texts.windows import token_windows
from maskgen.torch_model import check_tokens, dtype_name, load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Settings that change how a run reports but not what it learns.
_NOT_IDENTITY = {"checkpoint_every", "log_every"}


@dataclass(frozen=True, slots=True)
class LearnRequest:
    """What a learning run needs besides model, text and prior.

    Attributes:
        method: a name of the registry, of kind `learn`.
        config: an instance of the method's `config`.
        folder: checkpoints and log.
        domain: label of the mask.
        resume: go on from the folder's newest checkpoint.
        layers: which layers are learned; the others stay dense.
        dtype: of the frozen weights: `bf16`, `fp32` or `auto` (`torch_model.resolve_dtype`).
        device: torch device; by default CUDA if there is one.
        tensorboard: folder for event files.
        held_out: text on which the hard masks are evaluated while learning.
        held_out_every: steps between those evaluations; 0 for never.
        held_out_windows: windows of that text that are used.
    """

    method: str
    config: LearnConfig
    folder: Path
    domain: str = "general"
    resume: bool = False
    layers: LayerChoice = field(default_factory=LayerChoice)
    dtype: str = "auto"
    device: str | None = None
    tensorboard: Path | None = None
    held_out: TextSet | None = None
    held_out_every: int = 0
    held_out_windows: int = 8


@dataclass(frozen=True, slots=True)
class LearnResult:
    """A finished run.

    Attributes:
        mask: what was learned.
        changed: share of groups whose placement is not the prior's.
        tokens: tokens learned from.
        seconds: wall time of all steps, without loading; those before a resumption included.
        state_bytes: bytes of training state per weight, by part.
        first: whether this rank is the one to write the mask.
    """

    mask: Mask
    changed: float
    tokens: int
    seconds: float
    state_bytes: dict[str, float]
    first: bool


def parse_config(method: str, settings: dict[str, Any]) -> LearnConfig:
    """The method's settings object.

    Raises:
        UnknownMethodError: no such learned method.
        pydantic.ValidationError: (a ValueError) unknown or impossible settings.
    """
    chosen: type[LearnMethod[Any]] = load_method(method, "learn")
    return chosen.config.model_validate(settings)


def learn(
    model_dir: Path, texts: TextSet, prior: Mask, request: LearnRequest, console: Console
) -> LearnResult:
    """Learn a mask, in this process or as one rank of a torchrun job.

    Raises:
        MaskFileError: the prior belongs to another model or lacks a layer.
        LearningStoppedError: NaN or a diverging loss.
        CheckpointError: the run cannot be resumed from its folder.
        ModelDirectoryError: see `maskgen.torch_model.load_model`.
        ValueError: text, settings or layers do not fit.
    """
    config = request.config
    digest = base_digest(model_dir)
    check_base(prior, digest, str(model_dir))
    model = load_model(model_dir, request.dtype, request.device)
    if next(model.parameters()).device.type == "cpu" and not keep_freed_memory():
        console.print("the C library is not glibc: freed memory is not kept, steps take longer")
    selection = select_layers(model, request.layers, prior.pattern)
    names = list(selection.layers)
    if missing := [name for name in names if name not in prior.codes]:
        raise MaskFileError(f"the prior has no layer {missing[0]}; exclude it or change the prior")
    for line in dense_lines(selection.dense, selection.decoder_weights):
        console.print(line, highlight=False, soft_wrap=True)
    attention = use_blocked_attention(model, config.sequence_length)
    tokenizer = ModelTokenizer(model_dir)
    windows = token_windows(tokenizer, texts.texts, config.sequence_length)
    check_tokens(model, windows)
    batches = Batches(windows, config.batch_size, config.seed)
    method: LearnMethod[Any] = load_method(request.method, "learn")()
    with world_from_environment(next(model.parameters()).device) as world:
        learner = method.learner(
            model,
            {name: prior.codes[name] for name in names},
            config,
            batches,
            world,
            prior.pattern,
        )
        norms = "norms by torch" if learner.native is None else use_native_norms(model)
        chosen = f"masks by {describe(learner.native)}; {attention}; {norms}"
        console.print(chosen, highlight=False, soft_wrap=True)
        identity = {
            "method": request.method,
            "base_digest": digest,
            "prior_digest": prior.digest,
            "text_digest": texts.digest,
            "layers": _layers_identity(names),
            "dtype": dtype_name(model),
            **{k: v for k, v in config.model_dump().items() if k not in _NOT_IDENTITY},
        }
        options = RunOptions(
            request.folder,
            identity,
            resume=request.resume,
            tensorboard=request.tensorboard,
            held_out=_held_out_windows(model, tokenizer, request),
            held_out_every=request.held_out_every,
            divergence=config.divergence if isinstance(config, GradientConfig) else float("inf"),
        )
        outcome = run(learner, config, options, world, console)
    return LearnResult(
        mask=Mask(
            codes=learner.codes(),
            base_digest=digest,
            method=request.method,
            domain=request.domain,
            calibration_digest=texts.digest,
            seed=config.seed,
            pattern=prior.pattern,
            decoder_weights=selection.decoder_weights,
        ),
        changed=learner.movement().changed,
        tokens=config.steps * config.tokens_per_step,
        seconds=outcome.seconds,
        state_bytes=learner.state_bytes(),
        first=world.first,
    )


def _layers_identity(names: Sequence[str]) -> str:
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    return f"{len(names)} layers, {digest[:16]}"


def _held_out_windows(
    model: PreTrainedModel, tokenizer: ModelTokenizer, request: LearnRequest
) -> Sequence[torch.Tensor]:
    if request.held_out is None or not request.held_out_every:
        return ()
    length = request.config.sequence_length
    windows = token_windows(tokenizer, request.held_out.texts, length)
    check_tokens(model, windows)
    device = next(model.parameters()).device
    chosen = windows[: request.held_out_windows]
    return [torch.from_numpy(window[None]).long().to(device) for window in chosen]
