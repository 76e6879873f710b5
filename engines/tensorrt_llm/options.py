"""Options of the TensorRT-LLM engine."""

from __future__ import annotations

from pydantic import Field

from engines.typed_options import CommonOptions


class TensorRtLlmOptions(CommonOptions):
    """How to run an engine directory of target `tensorrt-llm`."""

    memory_gib: float | None = Field(
        None,
        gt=0,
        description="Most GPU memory of all loaded engines together, key-value caches included."
        " None: every engine stays once it is loaded.",
    )
    kv_gib: float = Field(
        4.0, gt=0, description="Key-value cache of each engine in GiB, over all its GPUs."
    )
    max_requests: int = Field(256, ge=1, description="Requests that may be in progress at once.")
