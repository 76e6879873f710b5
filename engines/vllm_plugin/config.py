"""vLLM's view of a twofour checkpoint: which method multiplies which layer."""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.layers.quantization.base_config import (
    QuantizationConfig,
    QuantizeMethodBase,
)

from engines.vllm_plugin.format import QUANT_METHOD, QuantizationSpec, parse_spec
from engines.vllm_plugin.stored_form import stored_form
from engines.vllm_plugin.version import check_version, vllm_version

_FUSED = {
    "qkv_proj": ["q_proj", "k_proj", "v_proj"],
    "gate_up_proj": ["gate_proj", "up_proj"],
}
"""What vLLM's layers of these names consist of where it does not say so."""


class TwofourConfig(QuantizationConfig):
    """`quantization_config` of a checkpoint that `twofour build --target vllm` wrote."""

    def __init__(self, spec: QuantizationSpec) -> None:
        super().__init__()
        self.spec = spec
        self._sparse = frozenset(spec.sparse_layers)

    def get_name(self) -> str:
        return QUANT_METHOD

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    @classmethod
    def get_min_capability(cls) -> int:
        return 80  # the first with 2:4 tensor cores

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TwofourConfig:
        """Read `quantization_config`.

        Raises:
            VllmVersionError: this vLLM was not tested with the plugin.
            EngineDirectoryError: the fields are malformed or of a newer format.
        """
        check_version(vllm_version())
        return cls(parse_spec(config))

    def parts_of(self, prefix: str) -> list[tuple[str, bool]]:
        """The checkpoint's layers that vLLM fuses into `prefix`, and whether each is sparse."""
        parent, _, name = prefix.rpartition(".")
        # How a checkpoint is cut shows in what it lists: vLLM is wrong about GLM-4's gate and up,
        # which are one matrix, and silent about StableLM.
        fused = self.packed_modules_mapping.get(name) or _FUSED.get(name, [name])
        fused = [name] if prefix in self._sparse else fused
        names = [f"{parent}.{part}" if parent else part for part in fused]
        return [(part, part in self._sparse) for part in names]

    def get_quant_method(self, layer: torch.nn.Module, prefix: str) -> QuantizeMethodBase | None:
        # Imported here: vLLM's layers import the quantization package that loads this module.
        from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
        from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
        from vllm.platforms import current_platform

        own_dense = self.spec.dense_kernel == "own" and current_platform.is_cpu()
        if isinstance(layer, LinearBase):
            from engines.vllm_plugin.linear import TwofourLinearMethod

            parts = self.parts_of(prefix)
            if own_dense or self.spec.values != "bf16" or any(sparse for _, sparse in parts):
                return TwofourLinearMethod(parts, stored_form(self.spec), self.spec.values)
            return UnquantizedLinearMethod()
        if self.spec.head != "bf16" and isinstance(layer, VocabParallelEmbedding):
            from engines.vllm_plugin.lowbit_head import QuantisedTableMethod

            return QuantisedTableMethod(self.spec)
        if own_dense and isinstance(layer, VocabParallelEmbedding):
            from engines.vllm_plugin.head import TwofourEmbeddingMethod

            return TwofourEmbeddingMethod()
        return None
