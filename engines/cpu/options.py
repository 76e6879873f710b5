"""Options of the CPU engine, and the sizes that follow from them."""

from __future__ import annotations

import os
from typing import Annotated, Literal

import psutil
from pydantic import Field, model_validator

from engines.cpu.model import PAGE_POSITIONS
from engines.cpu.storage_rule import Storage
from engines.directory.decoder_config import DecoderConfig
from engines.errors import EngineDirectoryError
from engines.native._native import Limits, page_bytes
from engines.typed_options import CommonOptions

PROMPT_ROWS = 64
"""Prompt positions whose logits one step computes; bounds the logits' memory."""


class CpuOptions(CommonOptions):
    """How to run an engine directory of target `cpu`."""

    kv_bytes: int | None = Field(
        None,
        ge=1,
        description="Bytes for keys and values, taken as they are used. None: a quarter of what is"
        " available, at least one context and at most 4 GiB.",
    )
    context_length: int | None = Field(
        None,
        ge=1,
        description="Most tokens of a sequence. None: what the model was made for, if the"
        " key-value cache holds it.",
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="OpenMP threads. None: `OMP_NUM_THREADS`, else the processors of this process.",
    )
    isa: str | None = Field(
        None, description="Instruction set, as `twofour info` names it. None: the best."
    )
    max_sequences: int = Field(64, ge=1, description="Most sequences that run at once.")
    max_waiting: int = Field(
        256, ge=1, description="Most sequences that wait; beyond it requests are refused."
    )
    step_tokens: int = Field(
        512, ge=1, description="Most tokens of one step: the size of a prompt's chunks."
    )
    mixed_prefill_tokens: int = Field(
        256, ge=1, description="The same while other sequences generate."
    )
    prefix_cache: bool = Field(
        True, description="Requests share the keys and values of equal prefixes."
    )
    invariant: bool = Field(
        False,
        description="Use only kernels whose results do not depend on batch mates, chunks or order.",
    )
    map_weights: bool = Field(
        False,
        description="Map the file of weights instead of reading it into memory: processes that"
        " serve one directory share its pages, and truncating it kills them.",
    )
    mask_bytes: int | None = Field(
        None,
        ge=1,
        description="Most bytes of masks beside the base. Beyond it those that nothing runs leave"
        " memory, the least recently used first, and return when a request names them. None: all"
        " stay.",
    )
    mask_storage: Storage | None = Field(
        None,
        description="Keep every mask beside the base as `patch` or as `copy`. None: as"
        " `patch_limit` says.",
    )
    patch_limit: Annotated[float, Field(ge=0, le=1)] | Literal["measure"] | None = Field(
        None,
        description="Share of changed groups, 0 to 1, up to which a mask is kept as a patch;"
        " `measure`: where the two cost the same time on this machine. None: what the directory"
        " records for its own masks, and a fixed rule for others.",
    )

    @model_validator(mode="after")
    def _check_together(self) -> CpuOptions:
        if self.step_tokens < self.max_sequences:
            raise ValueError(
                f"step_tokens ({self.step_tokens}) must be at least max_sequences"
                f" ({self.max_sequences}): every sequence needs a token a step"
            )
        return self


def limits_of(config: DecoderConfig, options: CpuOptions) -> Limits:
    """Turn the options into sizes.

    Raises:
        EngineDirectoryError: the cache holds less than the context that was asked for.
    """
    page = page_bytes(config.layers, config.kv_heads, config.head_dim)
    wanted = min(options.context_length or config.context, config.context)
    one_context = -(-wanted // PAGE_POSITIONS) * page
    budget = options.kv_bytes
    if budget is None:
        share = psutil.virtual_memory().available // 4
        budget = min(max(share, one_context), max(4 << 30, one_context))
    pages = budget // page
    context = min(wanted, pages * PAGE_POSITIONS)
    if pages < 1 or (options.context_length is not None and context < wanted):
        raise EngineDirectoryError(
            f"a key-value cache of {budget} bytes holds {pages * PAGE_POSITIONS} tokens,"
            f" {wanted} need {one_context} bytes: raise kv_bytes or lower context_length"
        )
    return Limits(
        max_tokens=options.step_tokens,
        max_logits=options.max_sequences + PROMPT_ROWS,
        context=context,
        pages=pages,
        threads=options.threads or default_threads(),
    )


def default_threads() -> int:
    """OpenMP threads unless an option says otherwise."""
    named = os.environ.get("OMP_NUM_THREADS", "")
    if named.isdigit() and int(named) > 0:
        return int(named)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
