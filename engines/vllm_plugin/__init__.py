"""twofour inside vLLM: 2:4 checkpoints, their kernels, and masks that can be switched.

vLLM calls `register` in every process it starts (entry point group `vllm.general_plugins`),
possibly more than once. Nothing here imports vLLM or torch before that.
"""

from __future__ import annotations


def register() -> None:
    """Make vLLM know `quant_method: "twofour"`. Idempotent; touches no device.

    A vLLM outside the tested range is not refused here, where it would break every other model of
    that installation, but when a twofour checkpoint is opened.
    """
    from vllm.model_executor.layers.quantization import register_quantization_config

    from engines.vllm_plugin.config import TwofourConfig
    from engines.vllm_plugin.format import QUANT_METHOD

    register_quantization_config(QUANT_METHOD)(TwofourConfig)
