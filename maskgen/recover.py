"""Recovery: from a dense model and one mask to a new base whose kept weights suit the mask.

Or, without a mask, from a smaller dense model and the one that it was made of, to better weights of
the smaller one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from torch import Tensor

from maskgen.apply import Change, rewrite_weights, rewritten_digest
from maskgen.format.digests import base_digest
from maskgen.format.mask import Mask, check_base
from maskgen.format.tokenizer import ModelTokenizer
from maskgen.learning.allocator import keep_freed_memory
from maskgen.learning.distributed import World, world_from_environment
from maskgen.recovery.parameters import Tuned, drop, keep_tensors, tuned_parameters
from maskgen.recovery.quantiser import WeightGrid, fake_quantise
from maskgen.recovery.request import RecoverRequest, RecoverResult, check_request, reconstructs
from maskgen.recovery.stages import TUNING, RecoveryStages
from maskgen.selection import LayerChoice, select_layers
from maskgen.texts.text_sets import TextSet
from maskgen.torch_model import load_model, resolve_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FACTS_FILE = "recovery.json"
"""Beside the recovered weights: what they came from, settings, tokens, and the held-out curve."""


def recover(
    model_dir: Path, mask: Mask | None, texts: TextSet, request: RecoverRequest, console: Console
) -> RecoverResult:
    """Recover a model for one mask and write it as a model directory of its own.

    In this process, or as one rank of a torchrun job.

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
    check_request(request, mask)
    dtype = resolve_dtype(request.dtype, request.device)
    model = load_model(model_dir, "fp32", request.device)
    keep = {} if mask is None else keep_tensors(mask, model)
    drop(model, keep)
    if config.values != "bf16":
        fake_quantise(model, keep, WeightGrid(config.values, config.block, config.minima))
    tuned: Mapping[str, Tuned]
    linears = keep.keys() if mask else select_layers(model, LayerChoice()).layers.keys()
    tuned = tuned_parameters(model, linears, keep, config.groups())
    dense = load_model(request.teacher or model_dir, dtype, request.device)
    _check_vocabulary(model, dense)
    device = next(model.parameters()).device
    teacher_digest = digest if request.teacher is None else base_digest(request.teacher)
    identity = {
        "base_digest": digest,
        "mask_digest": None if mask is None else mask.digest,
        "teacher_digest": teacher_digest,
        "text_digest": texts.digest,
        "dtype": dtype,
        **config.block_settings(),
    }
    with world_from_environment(device) as world:
        world.micro_batches(config.micro_batches)  # or refuse before hours of work
        if not world.first:
            console = Console(quiet=True)
        if device.type == "cpu" and not keep_freed_memory():
            console.print("the C library is not glibc: freed memory is not kept, steps take longer")
        weights = sum(t.parameter.numel() - _count(t.dropped) for t in tuned.values())
        console.print(f"recovering {weights:,} parameters: {', '.join(config.groups())}; {dtype}")
        tokenizer = ModelTokenizer(model_dir)
        stages = RecoveryStages(tokenizer, texts, request, identity, dtype, world, console)
        if mask is not None and reconstructs(config):
            stages.reconstruct(model, dense, keep, tuned)
        if config.steps:
            tuned = stages.tune(model, dense, keep, tuned)
        values = {
            n: t.parameter.detach() for n, t in tuned.items() if ".parametrizations." not in n
        }
        for name in keep:  # as they are computed from what was tuned
            weight: Tensor = model.get_submodule(name).weight  # type: ignore[assignment]
            values[f"{name}.weight"] = weight.detach()
        facts = {
            "dense_digest": teacher_digest,
            "mask_digest": identity["mask_digest"],
            "text_digest": texts.digest,
            "settings": config.model_dump(mode="json"),
            "tokens": stages.tokens,
            "seconds": round(stages.seconds, 1),
            "best_step": stages.best_step,
            "held_out_curve": _curve(request.folder / TUNING / "log.jsonl"),
        }
        new = _write(model_dir, request, values, facts, world)
    recovered = None if mask is None else replace(mask, base_digest=new, parent_digest=None)
    return RecoverResult(
        new, recovered, stages.tokens, stages.seconds, stages.best_step, world.first
    )


def _check_vocabulary(model: PreTrainedModel, teacher: PreTrainedModel) -> None:
    embeddings: list[Any] = [m.get_input_embeddings() for m in (model, teacher)]
    own, other = (embedding.weight.shape[0] for embedding in embeddings)
    if own != other:
        raise ValueError(
            f"the teacher has {other} tokens, the model {own}: their answers cannot be compared;"
            " give the model that this one was made of"
        )


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
    world: World,
) -> str:
    """Write the new model directory; one that an interrupted run has already written may stay.

    The first rank writes; the others compute the digest alone.
    """

    def finish(folder: Path, digest: str) -> None:
        text = json.dumps({**facts, "base_digest": digest}, indent=1)
        (folder / FACTS_FILE).write_text(f"{text}\n", encoding="utf-8")

    out = request.checkpoint
    changes = {name: Change.to(value.cpu().numpy()) for name, value in values.items()}
    if not world.first:
        return rewritten_digest(model_dir, changes)
    if not out.exists():
        return rewrite_weights(model_dir, out, changes, finish)
    digest = rewritten_digest(model_dir, changes)
    if base_digest(out) != digest:
        raise FileExistsError(f"{out} exists already and is another model; name a new directory")
    return digest


def _count(dropped: Tensor | None) -> int:
    return 0 if dropped is None else int(dropped.sum())
