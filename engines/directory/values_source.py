"""Where a build's int8 and int4 values come from: rounded by itself, or read from a values file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from engines.directory.build import BuildInputs, BuildRequest
from engines.directory.manifest import QuantisationRecord
from engines.directory.tensor_file import TensorFile
from engines.errors import EngineDirectoryError, MaskError
from engines.native import lowbit
from engines.native.lowbit import QuantisedWeights, block_count
from engines.quantisation.grid import Grid, round_to_nearest
from engines.quantisation.options import HEAD_BLOCK, ValueOptions
from maskgen.format.values_file import ValuesFileError, ValuesHeader, read_values_header


class ValuesSource(Protocol):
    """Gives layers as values."""

    def layer(self, name: str, weights: npt.NDArray[Any], rows: slice) -> QuantisedWeights:
        """The values of some rows of a matrix whose dense weights are (n, k).

        Raises:
            EngineDirectoryError: there are none.
        """


@dataclass(frozen=True)
class Nearest:
    """Rounds every weight by itself."""

    grid: Grid

    def layer(self, name: str, weights: npt.NDArray[Any], rows: slice) -> QuantisedWeights:
        return round_to_nearest(weights[rows], self.grid)


class ValuesFile:
    """Reads them.

    Args:
        path: the file.
        header: what it says of itself.
    """

    def __init__(self, path: Path, header: ValuesHeader) -> None:
        self._file = TensorFile(path)
        self._header = header

    def layer(self, name: str, weights: npt.NDArray[Any], rows: slice) -> QuantisedWeights:
        n, k = weights.shape
        blocks = (n, block_count(k, self._header.block))
        values = self._tensor(f"{name}.values", np.int8, (n, k))
        scales = self._tensor(f"{name}.scales", np.float16, blocks)
        minima = self._tensor(f"{name}.minima", np.int8, blocks) if self._header.minima else None
        return QuantisedWeights(
            values[rows],
            scales[rows],
            self._header.block,
            None if minima is None else minima[rows],
        )

    def _tensor(self, name: str, dtype: Any, shape: tuple[int, int]) -> npt.NDArray[Any]:
        found = self._file.tensor(name)
        if found.dtype != dtype or found.shape != shape:
            raise EngineDirectoryError(
                f"{self._file.path}: {name} is {found.dtype} {found.shape}, expected"
                f" {np.dtype(dtype)} {shape}"
            )
        return found


def values_of(
    request: BuildRequest,
) -> tuple[BuildRequest, ValuesSource, ValuesHeader | None]:
    """The request with the options that its values file stands for, and where values come from.

    Raises:
        EngineDirectoryError: the file is malformed, or options contradict it.
    """
    options = request.values
    if request.values_file is None:
        grid = Grid(options.values, options.block_inputs, options.has_minima)
        return request, Nearest(grid), None
    if (options.values, options.block, options.minima) != ("bf16", None, None):
        raise EngineDirectoryError(
            f"{request.values_file} says type, block and minima of its values itself: leave the"
            " options out"
        )
    try:
        header = read_values_header(request.values_file)
    except (ValuesFileError, OSError) as error:
        raise EngineDirectoryError(str(error)) from error
    minima = header.minima if header.values == "int4" else None
    told = {"values": header.values, "block": header.block, "minima": minima, "head": options.head}
    request = replace(
        request,
        values=ValueOptions.model_validate(told),
        sealed=request.sealed or header.mask_digest is not None,
    )
    assert request.values_file is not None
    return request, ValuesFile(request.values_file, header), header


def check_made_for(header: ValuesHeader | None, inputs: BuildInputs) -> None:
    """Do the values of a file belong to the model and the masks?

    Raises:
        EngineDirectoryError: they were made for another model.
        MaskError: they were made for what one mask keeps, and it is not the one mask of the build.
    """
    if header is None:
        return
    if header.base_digest != inputs.base_digest:
        raise EngineDirectoryError(
            f"the values were made for the model with base digest {header.base_digest[:12]}...,"
            f" this one's is {inputs.base_digest[:12]}..."
        )
    if header.mask_digest is None:
        return
    found = [mask.digest for mask in inputs.masks.values()]
    if found != [header.mask_digest]:
        raise MaskError(
            f"the values were made for what one mask keeps (digest {header.mask_digest[:12]}...):"
            " build with that mask alone"
        )


def quantisation_record(
    options: ValueOptions, header: ValuesHeader | None
) -> QuantisationRecord | None:
    """How values were made, for a manifest; None where all are bf16."""
    if options.plain:
        return None
    return QuantisationRecord.model_validate(
        {
            "values": options.values,
            "block": options.block_inputs,
            "minima": options.has_minima,
            "head": options.head_values,
            "head_block": HEAD_BLOCK if options.head_values == "int8" else 0,
            "quantiser": "nearest" if header is None else header.quantiser,
            "kind": "single" if header and header.mask_digest else "swappable",
            "calibration_digest": header.calibration_digest if header else None,
            "version": lowbit.VERSION,
        }
    )
