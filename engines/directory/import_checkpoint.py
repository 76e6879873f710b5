"""Reads 2:4 checkpoints that other tools wrote and nothing serves any more.

Three kinds: `sparse-24-bitmask` and `sparse-bitmask` (`engines.directory.compressed`), and plain
dense checkpoints. Of the last two, the layers that happen to be 2:4 count.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engines.directory.build import copy_text_files
from engines.directory.checkpoint import Checkpoint
from engines.directory.compressed import DenseView
from engines.directory.decoder_config import MODEL_TYPES
from engines.directory.progress import BuildProgress, silent
from engines.directory.tensor_file import TensorWriter
from engines.errors import EngineDirectoryError, as_engine_directory_error
from maskgen.format.coverage import DenseWeight, decoder_position, decoder_weights, share
from maskgen.format.digests import base_digest
from maskgen.format.experts import is_router
from maskgen.format.json_file import write_json
from maskgen.format.mask import Mask, MaskFileError
from maskgen.format.mask_file import write_mask
from maskgen.format.model_directory import CONFIG_FILE, QUANTIZATION_KEYS, read_quantization
from maskgen.format.pattern import TWO_FOUR
from maskgen.format.placements import Codes, project
from maskgen.format.two_four import GROUP

MODEL_FOLDER, MASK_FILE = "model", "mask.safetensors"
_NEVER_SPARSE = ("embed", "lm_head", "norm")
_UNFINISHED = {
    ".parametrizations.": "call squash_mask() of the sparsifier (torch, torchao)",
    "._weight_mask": "call modelopt.torch.sparsity.export",
}
"""Part of a tensor's name that a tool uses while it prunes -> what makes the zeros final."""
# A dense layer has more than two weights in every group, an unstructured one of 50 % in a third.
_REFILLED_AT_MOST, _STILL_EXACT = 0.25, 0.6


@dataclass(frozen=True)
class Imported:
    """What an import found and wrote.

    Attributes:
        kind: `sparse-24-bitmask`, `sparse-bitmask` or `dense`.
        found: the mask.
        dense: matrices of the decoder layers that are not 2:4, by layer name.
        notes: what the user should know, a line each.
        model: the checkpoint, written as an ordinary dense one.
        mask: the mask file that belongs to it.
    """

    kind: str
    found: Mask
    dense: dict[str, DenseWeight]
    notes: tuple[str, ...]
    model: Path
    mask: Path


def import_checkpoint(
    source: Path,
    out: Path,
    *,
    domain: str = "general",
    progress: BuildProgress = silent,
) -> Imported:
    """Write `out/model`, an ordinary dense checkpoint, and `out/mask.safetensors`.

    -0.0 becomes 0.0 in the sparse layers: tools that take it for a kept weight broke on it.

    Args:
        source: a Hugging Face model directory.
        out: an existing directory to write to.
        domain: what the mask will call its domain.
        progress: told about every tensor.

    Raises:
        EngineDirectoryError: `source` is malformed, quantised below 16 bits, or has no 2:4 layer;
            or a weight is not a number.
    """
    checkpoint = Checkpoint(source, encoded=True)
    _refuse_quantised(checkpoint)
    _refuse_unfinished(checkpoint)
    view = DenseView(checkpoint)
    _require_head(view)
    codes, counts = _survey(view, progress)
    if not codes:
        raise EngineDirectoryError(f"{source} has no 2:4 layer{_closest(counts)}")
    model = out / MODEL_FOLDER
    model.mkdir()
    _write_model(view, codes, model, progress)
    shapes = {name: view.spec(name).shape for name in view}
    try:
        mask = Mask(
            codes=codes,
            base_digest=base_digest(model),
            method="imported",
            domain=domain,
            calibration_digest=None,
            seed=0,
            decoder_weights=decoder_weights(shapes, codes),
        )
    except MaskFileError as error:
        raise EngineDirectoryError(f"{source}: {error}") from error
    write_mask(out / MASK_FILE, mask)
    return Imported(
        kind=view.kind,
        found=mask,
        dense=_dense(view, mask, counts),
        notes=_notes(view, codes, counts),
        model=model,
        mask=out / MASK_FILE,
    )


@dataclass(frozen=True, slots=True)
class _GroupCounts:
    """How many groups of a layer keep exactly two weights, more, and any number of them."""

    exact: int
    more: int
    groups: int

    @property
    def refilled(self) -> bool:
        """2:4 but for a few groups: pruned places were given values again."""
        return (
            0 < self.more <= _REFILLED_AT_MOST * self.groups
            and self.exact >= _STILL_EXACT * self.groups
        )

    def __str__(self) -> str:
        return (
            f"{self.more:,} of {self.groups:,} groups ({share(self.more, self.groups)}) keep more"
            " than two of four weights"
        )


def _refuse_quantised(checkpoint: Checkpoint) -> None:
    with as_engine_directory_error():
        quantization = read_quantization(checkpoint.config, checkpoint.directory)
    if quantization is not None and not quantization.sparse_only:
        raise EngineDirectoryError(
            f"{checkpoint.directory} is quantised ({quantization.method});"
            " only 16- and 32-bit weights can be imported"
        )


def _refuse_unfinished(checkpoint: Checkpoint) -> None:
    for name in checkpoint:
        for part, remedy in _UNFINISHED.items():
            if part in name:
                raise EngineDirectoryError(
                    f"{checkpoint.directory} holds {name}: its weights were pruned and the zeros"
                    f" not written into them; {remedy} and save it again"
                )


def _require_head(view: DenseView) -> None:
    untied = view.checkpoint.config.get("tie_word_embeddings") is False
    if view.prefixed and untied and "lm_head.weight" not in view:
        raise EngineDirectoryError(
            f"{view.checkpoint.directory} was saved without its output head: there is no"
            " lm_head.weight, and tie_word_embeddings is false; save the causal language model"
        )


def _survey(
    view: DenseView, progress: BuildProgress
) -> tuple[dict[str, Codes], dict[str, _GroupCounts]]:
    """Layer name -> codes of the 2:4 layers, and group counts of the others."""
    codes: dict[str, Codes] = {}
    counts: dict[str, _GroupCounts] = {}
    names = [name for name in view if _may_be_sparse(view, name)]
    for done, name in enumerate(names):
        progress("looking for 2:4 layers", done, len(names))
        layer = name.removesuffix(".weight")
        size = np.abs(view.tensor(name).astype(np.float32))
        if not np.isfinite(size).all():
            raise EngineDirectoryError(
                f"{view.checkpoint.directory}: {name} holds a weight that is NaN or infinite;"
                " the checkpoint is broken"
            )
        stated = view.codes(name)
        count = _count(size)
        if stated is not None:
            codes[layer] = stated
        elif count.more:
            counts[layer] = count
        else:
            codes[layer] = project(size, TWO_FOUR)
        view.release(name)
    return codes, counts


def _count(size: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> _GroupCounts:
    kept = np.count_nonzero(size.reshape(-1, GROUP), axis=-1)
    return _GroupCounts(int((kept == 2).sum()), int((kept > 2).sum()), kept.size)


def _closest(counts: dict[str, _GroupCounts]) -> str:
    if not counts:
        return ", nor any other linear layer"
    name = min(counts, key=lambda layer: counts[layer].more)
    refilled = [layer for layer, count in counts.items() if count.refilled]
    return f"; the closest is {name}: {counts[name]}" + (
        f". {len(refilled)} layers were {_REFILLED}" if refilled else ""
    )


_REFILLED = (
    "2:4 once and had pruned places refilled, as GPTQ does after pruning: import the checkpoint"
    " from before that, or prune the layer again (`twofour mask prune --include`)"
)


def _may_be_sparse(view: DenseView, name: str) -> bool:
    shape = view.spec(name).shape
    return (
        name.endswith(".weight")
        and len(shape) == 2
        and shape[1] % GROUP == 0
        and not any(part in name for part in _NEVER_SPARSE)
        and not is_router(name)
    )


def _dense(view: DenseView, mask: Mask, counts: dict[str, _GroupCounts]) -> dict[str, DenseWeight]:
    """Every matrix of the decoder layers that the mask does not list."""
    stacks = {place[0] for layer in mask.codes if (place := decoder_position(layer)) is not None}
    dense = {}
    for name in view:
        shape = view.spec(name).shape
        layer, place = name.removesuffix(".weight"), decoder_position(name)
        if layer in mask.codes or len(shape) < 2 or place is None or place[0] not in stacks:
            continue
        sizes = "x".join(map(str, shape))
        reason = str(counts[layer]) if layer in counts else f"its shape {sizes} cannot be 2:4"
        reason = "it routes tokens to experts" if is_router(name) else reason
        dense[layer] = DenseWeight(reason, int(np.prod(shape)))
    return dense


def _notes(
    view: DenseView, codes: dict[str, Codes], counts: dict[str, _GroupCounts]
) -> tuple[str, ...]:
    notes = [f"{layer} was {_REFILLED}" for layer, count in counts.items() if count.refilled]
    if any(".experts." in layer for layer in codes):
        kind = view.checkpoint.config.get("model_type")
        runs = "cpu alone runs" if kind in MODEL_TYPES else "no engine of twofour runs"
        notes.append(f"the mask lists experts, which {runs} sparse")
    if view.prefixed:
        notes.append("the tensors' names lacked their prefix `model.`; the written model has it")
    return tuple(notes)


def _write_model(
    view: DenseView, codes: dict[str, Codes], model: Path, progress: BuildProgress
) -> None:
    specs = {name: view.spec(name) for name in view}
    with TensorWriter(model / "model.safetensors", specs, {"format": "pt"}) as writer:
        for done, name in enumerate(specs):
            progress("writing the model", done, len(specs))
            values = view.tensor(name)
            if name.removesuffix(".weight") in codes:
                values = np.where(values == 0, np.zeros_like(values), values)
            writer.write(name, values)
            view.release(name)
    copy_text_files(view.checkpoint.directory, model)
    config = {k: v for k, v in view.checkpoint.config.items() if k not in QUANTIZATION_KEYS}
    write_json(model / CONFIG_FILE, config)
