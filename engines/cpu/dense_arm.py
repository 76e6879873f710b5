"""The dense model beside the masks of one directory: a set of weights of its own."""

from __future__ import annotations

from engines.cpu.loaded_weights import LoadedTensors
from engines.cpu.masks import DenseModel
from engines.cpu.model import CpuModel, load_packed, native_layers
from engines.directory.tensor_file import TensorFile
from engines.errors import EngineDirectoryError


def add_dense_arm(model: CpuModel, file: LoadedTensors | TensorFile) -> DenseModel:
    """Hand the dense model to the native decoder.

    Args:
        model: with a mask; the layers that it does not list are shared.
        file: the packed dense layers that it does list.

    Raises:
        EngineDirectoryError: a layer is missing, of another size, or malformed.
    """
    config, layers, own_bytes = model.config, [], 0
    for layer, row in enumerate(model.base):
        dense = []
        for linear, packed in zip(config.linears(layer), row, strict=True):
            if packed.layout.sparse:
                name = config.module(layer, linear)
                packed = load_packed(file, name, (packed.n, packed.k), model.forms.linears)
                if packed.layout.sparse:
                    raise EngineDirectoryError(f"{file.path}: {name} is not dense")
                own_bytes += packed.data.nbytes
            dense.append(packed)
        layers.append(dense)
    weights = model.native.add_weights(native_layers(layers))
    return DenseModel(model.native.add_mask(weights, []), weights, resident_bytes=own_bytes)
