"""Options of the vLLM engine."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from engines.typed_options import CommonOptions


class VllmOptions(CommonOptions):
    """How to run an engine directory of target `vllm`. The complement is compared always, when
    the mask changes for the first time."""

    max_requests: int = Field(
        256, ge=1, description="Requests that may be in progress at once, waiting ones included."
    )
    enforce_eager: bool = Field(
        False, description="Run without torch.compile: starts much sooner, decodes slower."
    )
    tensor_parallel_size: int = Field(1, ge=1, description="Workers that share each layer.")
    max_model_len: int | None = Field(
        None, ge=1, description="Most tokens of one sequence. None: what the model allows."
    )
    kv_cache_bytes: int | None = Field(
        1 << 30,
        ge=1,
        description="Bytes for the key-value cache of each worker. None leaves it to vLLM.",
    )
    vllm_options: dict[str, Any] = Field(
        {}, description="Further arguments of vLLM's `AsyncEngineArgs`."
    )
