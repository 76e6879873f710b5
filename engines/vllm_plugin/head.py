"""Embedding and output head: the head's product runs on twofour's dense kernel, in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Parameter
from vllm.logger import init_logger
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)

from engines.native.layout import Layout
from engines.vllm_plugin.cpu import CpuBackend

logger = init_logger("vllm.twofour")


class TwofourEmbeddingMethod(UnquantizedEmbeddingMethod):
    """An embedding, and the head's product where the layer is one.

    The table itself stays as it is, for lookups. Some models use the embedding as their head, which
    only shows at the first product: then it is packed.
    """

    def __init__(self) -> None:
        self._tied = False
        self._packed: torch.Tensor | None = None

    def tie_weights(self, layer: Any, embed_tokens: VocabParallelEmbedding) -> Any:
        self._tied = True
        return super().tie_weights(layer, embed_tokens)

    def process_weights_after_loading(self, layer: Any) -> None:
        self._packed = None
        if not isinstance(layer, ParallelLMHead):
            return
        self._pack(layer)
        if not self._tied:
            layer.weight = Parameter(layer.weight.new_empty(0), requires_grad=False)

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        packed = self._pack(layer) if self._packed is None else self._packed
        rows = layer.num_embeddings_per_partition
        # The kernel rounds x to bf16 again, which changes nothing, and does not round the sums.
        result: torch.Tensor = torch.ops.twofour.linear.default(
            x.float(), packed, int(Layout.DENSE_BF16), rows, bias
        )
        return result

    def _pack(self, layer: Any) -> torch.Tensor:
        backend = CpuBackend()
        run = backend.pack_dense(layer.weight.data)
        logger.info_once("twofour: %s", backend.describe("head", run))
        self._packed = run.tensors["packed"]
        return self._packed
