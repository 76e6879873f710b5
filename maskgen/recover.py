"""Recovery: from a dense model and one mask to a new base whose kept weights suit the mask.

Or, without a mask, from a smaller dense model and the one that it was made of, to better weights of
the smaller one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import Tensor

from maskgen.apply import Change, rewrite_weights, rewritten_digest
from maskgen.format.digests import base_digest
from maskgen.format.mask import Mask
from maskgen.format.tokenizer import ModelTokenizer
from maskgen.learning.allocator import keep_freed_memory
from maskgen.learning.attention import use_short_attention
from maskgen.learning.batches import Batches
from maskgen.learning.distributed import World
from maskgen.learning.loop import RunOptions, run
from maskgen.recovery.config import GROUPS, RecoverConfig
from maskgen.recovery.low_rank import add_low_rank, low_rank_parameters
from maskgen.recovery.parameters import drop, keep_tensors, tuned_parameters
from maskgen.recovery.quantiser import WeightGrid, fake_quantise
from maskgen.recovery.reconstruction import Reconstruction
from maskgen.recovery.tuning import Tuning
from maskgen.selection import LayerChoice, select_layers
from maskgen.texts.text_sets import TextSet
from maskgen.texts.windows import draw_windows, token_windows
from maskgen.torch_model import check_base, check_tokens, load_model, resolve_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Settings that change how a run reports but not what it recovers.
_NOT_IDENTITY = {"checkpoint_every", "log_every"}
_BLOCKS, _TUNING = "blocks", "tuning"
FACTS_FILE = "recovery.json"
"""Beside the recovered weights: what they came from, settings, tokens, and the held-out curve."""


@dataclass(frozen=True, slots=True)
class RecoverRequest:
    """What recovery needs besides model, mask and text.

    Attributes:
        config: settings.
        folder: checkpoints and logs, a folder for each of the two stages.
        checkpoint: the model directory to write.
        resume: go on from the newest checkpoint.
        dtype: to compute in: `bf16`, `fp32` or `auto` (`torch_model.resolve_dtype`); what is tuned
            is fp32 always.
        device: torch device; by default CUDA if there is one.
        tensorboard: folder for event files.
        held_out: text that decides which step was best, and when to stop.
        held_out_every: steps between evaluations on it.
        held_out_windows: windows of that text that are used, spread evenly.
        teacher: the dense model's directory, if it is not the one that is recovered.
    """

    config: RecoverConfig
    folder: Path
    checkpoint: Path
    resume: bool = False
    dtype: str = "auto"
    device: str | None = None
    tensorboard: Path | None = None
    held_out: TextSet | None = None
    held_out_every: int = 25
    held_out_windows: int = 16
    teacher: Path | None = None


@dataclass(frozen=True, slots=True)
class RecoverResult:
    """A finished recovery.

    Attributes:
        digest: base digest of the new model directory.
        mask: the mask that was given, for that directory; None if there was none.
        tokens: tokens that tuning saw, and those that blocks were reconstructed on.
        seconds: wall time of all steps; those before a resumption included.
        best_step: step of tuning that was kept; None if held-out text did not decide.
    """

    digest: str
    mask: Mask | None
    tokens: int
    seconds: float
    best_step: int | None


def recover(
    model_dir: Path, mask: Mask | None, texts: TextSet, request: RecoverRequest, console: Console
) -> RecoverResult:
    """Recover a model for one mask and write it as a model directory of its own.

    Args:
        mask: of the model; None to tune all weights of a smaller model's decoder layers.

    Beside the weights lies `recovery.json`, which says how they were made.

    Raises:
        MaskFileError: the mask belongs to another model, or does not fit it.
        FileExistsError: `request.checkpoint` exists already.
        LearningStoppedError: NaN or a diverging loss.
        CheckpointError: the run cannot be resumed from its folder.
        ModelDirectoryError: see `maskgen.torch_model.load_model`.
        ValueError: every group of parameters is switched off, or there is nothing to do; or text
            and settings do not fit.
    """
    config = request.config
    digest = base_digest(model_dir)
    if mask is not None:
        check_base(mask, digest, str(model_dir))
    _check(request, mask)
    dtype = resolve_dtype(request.dtype, request.device)
    model = load_model(model_dir, "fp32", request.device)
    keep = {} if mask is None else keep_tensors(mask, model)
    drop(model, keep)
    if config.values != "bf16":
        fake_quantise(model, keep, WeightGrid(config.values, config.block, config.minima))
    linears = keep.keys() if mask else select_layers(model, LayerChoice()).layers.keys()
    tuned = tuned_parameters(model, linears, keep, config.groups())
    dense = load_model(request.teacher or model_dir, dtype, request.device)
    _check_vocabulary(model, dense)
    device = next(model.parameters()).device
    if device.type == "cpu" and not keep_freed_memory():
        console.print("the C library is not glibc: freed memory is not kept, steps take longer")
    weights = sum(t.parameter.numel() - _count(t.dropped) for t in tuned.values())
    console.print(f"recovering {weights:,} parameters: {', '.join(config.groups())}; {dtype}")
    tokenizer = ModelTokenizer(model_dir)
    identity = {
        "base_digest": digest,
        "mask_digest": None if mask is None else mask.digest,
        "teacher_digest": _teacher_digest(request, digest),
        "text_digest": texts.digest,
        "dtype": dtype,
        **config.block_settings(),
    }
    options = RunOptions(request.folder, identity, resume=request.resume)
    tokens, seconds = 0, 0.0
    if mask is not None and _reconstructs(config):
        windows = token_windows(tokenizer, texts.texts, config.window_length)
        check_tokens(model, windows)
        windows = draw_windows(windows, config.windows, config.seed)
        blocks = Reconstruction(model, dense, keep, tuned, windows, config, dtype == "bf16")
        outcome = run(
            blocks,
            config.model_copy(update={"steps": len(blocks.blocks), "checkpoint_every": 1}),
            replace(options, folder=request.folder / _BLOCKS, title=_BLOCKS),
            World(),
            console,
        )
        tokens, seconds = windows.size, outcome.seconds
        del blocks
    best_step = None
    if config.steps:
        batches = _batches(model, tokenizer, texts, config)
        teacher = dense if config.distillation else None
        for network in (model, dense):
            use_short_attention(network, config.sequence_length)
        if config.rank and config.weights:
            add_low_rank(model, keep, config.rank, config.seed)
            others = {n: t for n, t in tuned.items() if t.dropped is None}
            tuned = {**others, **low_rank_parameters(model)}
        tuning = Tuning(model, teacher, tuned, config, batches, dtype == "bf16")
        outcome = run(
            tuning,
            config,
            replace(
                options,
                folder=request.folder / _TUNING,
                identity={**identity, **_tuning_identity(request)},
                title=_TUNING,
                tensorboard=request.tensorboard,
                held_out=_held_out(model, tokenizer, request),
                held_out_every=0 if request.held_out is None else request.held_out_every,
                keep_best=request.held_out is not None,
                patience=config.patience,
                divergence=config.divergence,
            ),
            World(),
            console,
        )
        tokens += outcome.steps * config.tokens_per_step
        seconds += outcome.seconds
        best_step = outcome.best_step
    values = {n: t.parameter.detach() for n, t in tuned.items() if ".parametrizations." not in n}
    for name in keep:  # as they are computed from what was tuned
        weight: Tensor = model.get_submodule(name).weight  # type: ignore[assignment]
        values[f"{name}.weight"] = weight.detach()
    facts = {
        "dense_digest": _teacher_digest(request, digest),
        "mask_digest": None if mask is None else mask.digest,
        "text_digest": texts.digest,
        "settings": config.model_dump(mode="json"),
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "best_step": best_step,
        "held_out_curve": _curve(request.folder / _TUNING / "log.jsonl"),
    }
    new = _write(model_dir, request, values, facts)
    recovered = None if mask is None else replace(mask, base_digest=new, parent_digest=None)
    return RecoverResult(new, recovered, tokens, seconds, best_step)


def _teacher_digest(request: RecoverRequest, own: str) -> str:
    return own if request.teacher is None else base_digest(request.teacher)


def _check(request: RecoverRequest, mask: Mask | None) -> None:
    config = request.config
    if mask is None:
        _check_without_mask(request)
    elif request.teacher is not None:
        raise ValueError(
            "a mask is recovered against the model it belongs to: give a mask or a teacher, not"
            " both"
        )
    if config.rank and config.values != "bf16":
        raise ValueError(
            f"rank {config.rank} and values {config.values} do not go together: a low-rank"
            " difference leaves the grid; give one of them"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("recovery runs in one process; start it without torchrun")
    if not config.groups():
        raise ValueError(
            f"every group of parameters is switched off ({', '.join(GROUPS)}): nothing could"
            " change; switch one on"
        )
    if not config.steps and (mask is None or not _reconstructs(config)):
        raise ValueError(
            "steps is 0 and no block is reconstructed: nothing would change; give steps, or"
            " least_squares or block_steps with weights on"
        )
    if config.patience and request.held_out is None:
        raise ValueError(f"patience {config.patience} needs held-out text: give it, or patience 0")
    if request.checkpoint.exists() and not request.resume:
        raise FileExistsError(f"{request.checkpoint} exists already; name a new directory")


def _check_without_mask(request: RecoverRequest) -> None:
    config = request.config
    if request.teacher is None:
        raise ValueError(
            "without a mask, the model that this one was made of has to teach it: give a teacher,"
            " or a mask"
        )
    asked = "least_squares" in config.model_fields_set  # its default is for masks
    for name, value, unused in (
        ("rank", config.rank, 0),
        ("block_steps", config.block_steps, 0),
        ("least_squares", config.least_squares if asked else 0, 0),
        ("values", config.values, "bf16"),
    ):
        if value != unused:
            raise ValueError(f"{name} {value} needs a mask: without one, all weights are tuned")


def _check_vocabulary(model: PreTrainedModel, teacher: PreTrainedModel) -> None:
    embeddings: list[Any] = [m.get_input_embeddings() for m in (model, teacher)]
    own, other = (embedding.weight.shape[0] for embedding in embeddings)
    if own != other:
        raise ValueError(
            f"the teacher has {other} tokens, the model {own}: their answers cannot be compared;"
            " give the model that this one was made of"
        )


def _tuning_identity(request: RecoverRequest) -> dict[str, Any]:
    """What tuning depends on beside what blocks do, which can be tuned again in another folder."""
    settings = request.config.model_dump()
    return {
        "held_out_digest": None if request.held_out is None else request.held_out.digest,
        "held_out": [request.held_out_every, request.held_out_windows],
        **{name: value for name, value in settings.items() if name not in _NOT_IDENTITY},
    }


def _reconstructs(config: RecoverConfig) -> bool:
    return config.weights and bool(config.least_squares or config.block_steps)


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


def _curve(log: Path) -> list[list[float]]:
    """(tokens seen by tuning, loss on held-out text in nats a token)."""
    if not log.is_file():
        return []
    rows = map(json.loads, log.read_text(encoding="utf-8").splitlines())
    return [[r.get("tokens", 0), round(r["held_out"], 4)] for r in rows if "held_out" in r]


def _write(
    model_dir: Path,
    request: RecoverRequest,
    values: Mapping[str, Tensor],
    facts: Mapping[str, Any],
) -> str:
    """Write the new model directory; one that an interrupted run has already written may stay."""

    def finish(folder: Path, digest: str) -> None:
        text = json.dumps({**facts, "base_digest": digest}, indent=1)
        (folder / FACTS_FILE).write_text(f"{text}\n", encoding="utf-8")

    out = request.checkpoint
    changes = {name: Change.to(value.cpu().numpy()) for name, value in values.items()}
    if not out.exists():
        return rewrite_weights(model_dir, out, changes, finish)
    digest = rewritten_digest(model_dir, changes)
    if base_digest(out) != digest:
        raise FileExistsError(f"{out} exists already and is another model; name a new directory")
    return digest


def _count(dropped: Tensor | None) -> int:
    return 0 if dropped is None else int(dropped.sum())
