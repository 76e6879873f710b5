"""Embedding and output head of int8 values: one packed table serves look-ups and the product."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Parameter
from vllm.logger import init_logger
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.utils import set_weight_attrs

from engines.vllm_plugin.backend import PackedRows
from engines.vllm_plugin.cpu import CpuBackend
from engines.vllm_plugin.device import select_backend
from engines.vllm_plugin.format import QuantizationSpec
from engines.vllm_plugin.lowbit_format import table_form
from engines.vllm_plugin.packed_table import packed_table_rows
from engines.vllm_plugin.stored_form import QuantisedForm

logger = init_logger("vllm.twofour")


class QuantisedTableMethod(QuantizeMethodBase):
    """An embedding, an output head, or both where they are tied.

    Args:
        spec: of the checkpoint; its head is int8.

    Raises:
        EngineDirectoryError: the device has no kernels for such values.
    """

    def __init__(self, spec: QuantizationSpec) -> None:
        select_backend(spec.head)
        form = table_form(spec)
        assert form is not None  # `TwofourConfig` makes it for such heads alone
        self._form = QuantisedForm(form)
        self._tied: VocabParallelEmbedding | None = None
        self._run: PackedRows | None = None
        self._dtype = torch.bfloat16

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
        self._dtype = params_dtype
        rows = sum(output_partition_sizes)
        for name in self._form.parts(sparse=False):
            spec = self._form.parameter(name, input_size_per_partition)
            parameter = Parameter(spec.unloaded(rows), requires_grad=False)
            set_weight_attrs(parameter, {"input_dim": 1, "output_dim": 0, **extra})
            layer.register_parameter(name, parameter)

    def tie_weights(self, layer: Any, embed_tokens: VocabParallelEmbedding) -> Any:
        self._tied = embed_tokens
        self._drop_parameters(layer)
        return layer

    def process_weights_after_loading(self, layer: Any) -> None:
        if self._tied is not None:
            return
        tensors = {name: getattr(layer, name).data for name in self._form.parts(sparse=False)}
        self._run = self._form.pack(CpuBackend(), tensors, layer.embedding_dim)
        self._drop_parameters(layer)
        packed = Parameter(self._run.tensors["packed"], requires_grad=False)
        layer.register_parameter("twofour_packed", packed)
        logger.info_once("twofour: %s", CpuBackend().describe("table", self._run))

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        # In float32, so that the sums are not rounded.
        return CpuBackend().multiply(x.float(), self._table(), bias)

    def embedding(self, layer: Any, input_: torch.Tensor) -> torch.Tensor:
        return packed_table_rows(self._table(), input_).to(self._dtype)

    def _table(self) -> PackedRows:
        method: Any = self if self._tied is None else self._tied.quant_method
        run: PackedRows = method._run
        return run

    def _drop_parameters(self, layer: Any) -> None:
        for name in self._form.parts(sparse=False):
            del layer._parameters[name]
