"""int8 and int4 values with error feedback: from a model directory and text to a values file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maskgen.calibration import LayerProgress, dense_statistics
from maskgen.experts import RareExperts
from maskgen.format.digests import base_digest
from maskgen.format.mask import Mask, check_base
from maskgen.format.placements import keep_from_codes
from maskgen.format.tokenizer import ModelTokenizer
from maskgen.format.values_file import LayerValues, ValuesHeader, write_values
from maskgen.methods.sparsegpt import Hessian, inverse_factor
from maskgen.recovery.gptq import gptq
from maskgen.recovery.quantiser import Quantised, WeightGrid
from maskgen.selection import select_layers
from maskgen.texts.text_sets import TextSet
from maskgen.texts.windows import draw_windows, token_windows
from maskgen.torch_model import apply_to_module, check_tokens, load_model


@dataclass(frozen=True, slots=True)
class QuantiseSettings:
    """What a run needs besides model and text.

    Attributes:
        grid: type of values, block and minima.
        windows: calibration windows drawn from the text.
        length: tokens in a window.
        seed: which windows are drawn.
        dtype: that the model runs in; errors are fed back in fp32.
    """

    grid: WeightGrid
    windows: int = 64
    length: int = 1024
    seed: int = 0
    dtype: str = "auto"


def quantise_model(
    model_dir: Path,
    texts: TextSet,
    settings: QuantiseSettings,
    out: Path,
    mask: Mask | None = None,
    progress: LayerProgress = lambda done, count, name: None,
    rare: RareExperts | None = None,
) -> ValuesHeader:
    """Write a values file: every linear of the decoder's layers, by GPTQ.

    Args:
        model_dir: Hugging Face model directory.
        texts: calibration text.
        settings: grid and calibration.
        out: the file.
        mask: make values for what this mask keeps, and for it alone; None for the dense matrices,
            whose values serve every mask.
        progress: called after every decoder layer.
        rare: is told the experts that too few tokens chose.

    Raises:
        SelectionError: the architecture does not fit the pass.
        TooLittleTextError: the text does not fill the windows.
        ModelDirectoryError, MaskFileError: see `load_model` and `check_base`.
        ValueError: a layer's Hessian is of no use; the message names it.
    """
    model = load_model(model_dir, settings.dtype)
    digest = base_digest(model_dir)
    linears = select_layers(model).layers
    dense: dict[str, Tensor] = {}  # the weights before the mask is applied
    if mask is not None:
        check_base(mask, digest, str(model_dir))
        dense = {n: model.get_parameter(f"{n}.weight").detach().clone() for n in mask.codes}
        apply_to_module(model, mask)
    windows = token_windows(ModelTokenizer(model_dir), texts.texts, settings.length)
    check_tokens(model, windows)
    windows = draw_windows(windows, settings.windows, settings.seed)

    def layers() -> Iterator[tuple[str, LayerValues]]:
        for statistics in dense_statistics(model, linears, Hessian, windows, progress, rare):
            factors: dict[int, Tensor] = {}  # query, key and value have one Hessian
            for name, statistic in statistics.items():
                assert isinstance(statistic, Hessian)
                if id(statistic) not in factors:
                    factors[id(statistic)] = _factor(name, statistic)
                weight = linears[name].weight.detach().float()
                keep = None
                if mask is not None and name in mask.codes:
                    weight = dense[name].float()
                    kept = keep_from_codes(mask.codes[name], mask.pattern)
                    keep = torch.from_numpy(kept).to(weight.device)
                found = gptq(weight, keep, factors[id(statistic)], settings.grid)
                yield name, _layer_values(found, weight.shape[1])

    header = ValuesHeader(
        base_digest=digest,
        mask_digest=None if mask is None else mask.digest,
        values=settings.grid.values,
        block=settings.grid.block,
        minima=settings.grid.minima,
        quantiser="gptq",
        calibration_digest=texts.digest,
    )
    write_values(out, header, layers())
    return header


def _factor(name: str, statistic: Hessian) -> Tensor:
    try:
        return inverse_factor(statistic.sum, statistic.tokens)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _layer_values(found: Quantised, columns: int) -> LayerValues:
    numbers = found.numbers.flatten(1)[:, :columns].to(torch.int8)
    own = found.minima is not None and found.minima.ndim > 0
    return LayerValues(
        np.ascontiguousarray(numbers.cpu().numpy()),
        found.scales[:, :, 0].cpu().numpy().astype(np.float16),
        found.minima[:, :, 0].to(torch.int8).cpu().numpy() if own else None,  # type: ignore[index]
    )
