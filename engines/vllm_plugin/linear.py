"""The linear method: from what the checkpoint stores of a layer to a product.

vLLM fuses layers that read the same input (query, key and value; gate and up). A fused layer whose
parts are all sparse, or all dense, is one product; otherwise each run of like parts is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Parameter
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import (
    LinearMethodBase,
    register_weight_loader_v2_supported_method,
)
from vllm.model_executor.parameter import ModelWeightParameter

from engines.errors import EngineDirectoryError
from engines.vllm_plugin.backend import PackedRows, copy_into
from engines.vllm_plugin.device import select_backend
from engines.vllm_plugin.stored_form import StoredForm

logger = init_logger("vllm.twofour")


@dataclass(frozen=True)
class Part:
    """One layer of the checkpoint inside a (fused) vLLM layer.

    Attributes:
        name: its name in the checkpoint.
        sparse: whether a mask lists it.
        rows: outputs on this worker.
    """

    name: str
    sparse: bool
    rows: int


@register_weight_loader_v2_supported_method
class TwofourLinearMethod(LinearMethodBase):
    """Multiplies one vLLM linear layer.

    Args:
        parts: the checkpoint's layers that it consists of, and whether each is sparse.
        form: how the checkpoint stores them.
        values: type of their values.

    Raises:
        EngineDirectoryError: the device has no kernels for such values.
    """

    def __init__(
        self, parts: list[tuple[str, bool]], form: StoredForm, values: str = "bf16"
    ) -> None:
        self._named = parts
        self._form = form
        self._backend = select_backend(values)
        self.parts: tuple[Part, ...] = ()
        self._runs: list[PackedRows] = []
        self._inputs = 0
        self._bias: torch.Tensor | None = None

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra: Any,
    ) -> None:
        if len(self._named) != len(output_partition_sizes):
            # A layer that is fused in the checkpoint already: one name for all its partitions.
            name, sparse = self._named[0]
            self._named = [(name, sparse)] * len(output_partition_sizes)
        self.parts = tuple(
            Part(name, sparse, rows)
            for (name, sparse), rows in zip(self._named, output_partition_sizes, strict=True)
        )
        self._inputs = input_size_per_partition
        step = max(self._form.inputs_step(sparse=part.sparse) for part in self.parts)
        if self._inputs != input_size and self._inputs % step:
            raise EngineDirectoryError(
                f"{self.parts[0].name}: {input_size} inputs cannot be cut into shards of"
                f" {self._inputs}; each needs a multiple of {step}."
                " Use a smaller --tensor-parallel-size"
            )
        self._create_parameters(layer, extra["weight_loader"])

    def _parameter_names(self) -> tuple[str, ...]:
        kinds = {part.sparse for part in self.parts}
        return tuple(
            dict.fromkeys(name for sparse in kinds for name in self._form.parts(sparse=sparse))
        )

    def _create_parameters(self, layer: Any, loader: Any) -> None:
        """Parameters as the checkpoint has them, filled with what no checkpoint holds."""
        rows = sum(part.rows for part in self.parts)
        for name in self._parameter_names():
            spec = self._form.parameter(name, self._inputs)
            parameter = ModelWeightParameter(
                data=spec.unloaded(rows),
                input_dim=1,
                output_dim=0,
                weight_loader=loader,
            )
            layer.register_parameter(name, parameter)

    def process_weights_after_loading(self, layer: Any) -> None:
        self._runs = []
        for index, (sparse, begin, end) in enumerate(_runs(self.parts)):
            names = [part.name for part in self.parts]
            run = self._backend.adopt(self._pack(layer, sparse, begin, end))
            for name, tensor in run.tensors.items():
                if type(tensor) is torch.Tensor:
                    layer.register_parameter(
                        f"twofour_{index}_{name}", Parameter(tensor, requires_grad=False)
                    )
            self._runs.append(run)
            logger.info_once("twofour: %s", self._backend.describe(_short(names), run))
        self._drop_parameters(layer)
        bias = getattr(layer, "bias", None)
        self._bias = None if bias is None else bias.detach().to(torch.float32)

    def refresh(self, layer: Any, values: dict[str, dict[str, torch.Tensor]]) -> None:
        """Replace the weights of the sparse parts in place, so that captured graphs see them.

        Args:
            layer: the layer that this method multiplies, its weights processed.
            values: checkpoint layer name -> its tensors by name, whole (not sharded).
        """
        self._create_parameters(layer, layer.weight_loader_v2)
        for index, part in enumerate(self.parts):
            if part.sparse:
                for name, tensor in values[part.name].items():
                    parameter = getattr(layer, name)
                    _load_part(layer, parameter, tensor, index)
        for (sparse, begin, end), run in zip(_runs(self.parts), self._runs, strict=True):
            if sparse:
                fresh = self._pack(layer, sparse, begin, end)
                for name, tensor in fresh.tensors.items():
                    copy_into(run.tensors[name], tensor)
        self._drop_parameters(layer)

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        # A given bias is always the layer's own; row-parallel ranks above 0 get none.
        own = None if bias is None else self._bias
        if len(self._runs) == 1:
            return self._backend.multiply(x, self._runs[0], own)
        outputs = []
        begin = 0
        for run in self._runs:
            piece = None if own is None else own[begin : begin + run.n]
            outputs.append(self._backend.multiply(x, run, piece))
            begin += run.n
        return torch.cat(outputs, dim=-1)

    def _pack(self, layer: Any, sparse: bool, begin: int, end: int) -> PackedRows:
        parts = self._form.parts(sparse=sparse)
        rows = {name: getattr(layer, name).data[begin:end] for name in parts}
        try:
            return self._form.pack(self._backend, rows, self._inputs)
        except EngineDirectoryError as error:
            where = " + ".join(dict.fromkeys(part.name for part in self.parts))
            raise EngineDirectoryError(f"{where}: {error}") from error

    def _drop_parameters(self, layer: Any) -> None:
        for name in self._parameter_names():
            del layer._parameters[name]


def _runs(parts: tuple[Part, ...]) -> list[tuple[bool, int, int]]:
    """(sparse, first row, row after the last) of every run of like parts."""
    runs: list[tuple[bool, int, int]] = []
    begin = 0
    for part in parts:
        end = begin + part.rows
        if runs and runs[-1][0] == part.sparse:
            runs[-1] = (part.sparse, runs[-1][1], end)
        else:
            runs.append((part.sparse, begin, end))
        begin = end
    return runs


def _load_part(layer: Any, parameter: Any, tensor: torch.Tensor, index: int) -> None:
    """Cut `tensor` for this worker with vLLM's own loaders."""
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear

    if isinstance(layer, QKVParallelLinear):
        layer.weight_loader_v2(parameter, tensor, "qkv"[index])
    elif isinstance(layer, MergedColumnParallelLinear):
        layer.weight_loader_v2(parameter, tensor, index)
    else:
        parameter.weight_loader(parameter, tensor)


def _short(names: list[str]) -> str:
    return "+".join(dict.fromkeys(name.rpartition(".")[2] for name in names))
