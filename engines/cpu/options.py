"""Options of the CPU engine, and the sizes that follow from them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import psutil

from engines.cpu.model import PAGE_POSITIONS
from engines.cpu.storage_rule import Storage
from engines.directory.decoder_config import DecoderConfig
from engines.errors import EngineDirectoryError
from engines.native._native import Limits, page_bytes

PROMPT_ROWS = 64
"""Prompt positions whose logits one step computes; bounds the logits' memory."""


@dataclass(frozen=True)
class CpuOptions:
    """How to run an engine directory.

    Attributes:
        kv_bytes: memory for keys and values; taken as it is used. None: a quarter of what is
            available, at least one context and at most 4 GiB.
        context_length: most tokens of a sequence; None: what the model was made for, if the
            key-value cache holds it.
        threads: OpenMP threads; None: OMP_NUM_THREADS, else the processors of this process.
        isa: instruction set, instead of the best.
        max_sequences: most sequences that run at once.
        max_waiting: most sequences that wait; beyond it requests are refused.
        step_tokens: most tokens of one step: the size of a prompt's chunks.
        mixed_prefill_tokens: the same while other sequences generate.
        prefix_cache: whether requests share the keys and values of equal prefixes.
        invariant: use only kernels whose results do not depend on batch mates, chunks or order.
        map_weights: map the file of weights instead of reading it into memory: processes that
            serve one directory share its pages, and truncating it kills them.
        mask_storage: keep every mask beside the base as `patch` or as `copy`; None chooses by
            `patch_limit`.
        patch_limit: share of changed groups, 0 to 1, up to which a mask is kept as a patch;
            `measure` measures where the two cost the same time on this machine. None is what the
            directory records for its own masks, and `storage_rule.PATCH_LIMIT` for others.
    """

    kv_bytes: int | None = None
    context_length: int | None = None
    threads: int | None = None
    isa: str | None = None
    max_sequences: int = 64
    max_waiting: int = 256
    step_tokens: int = 512
    mixed_prefill_tokens: int = 256
    prefix_cache: bool = True
    invariant: bool = False
    map_weights: bool = False
    mask_storage: Storage | None = None
    patch_limit: float | Literal["measure"] | None = None

    def __post_init__(self) -> None:
        for name in (
            "kv_bytes",
            "context_length",
            "threads",
            "max_sequences",
            "max_waiting",
            "step_tokens",
            "mixed_prefill_tokens",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.step_tokens < self.max_sequences:
            raise ValueError(
                f"step_tokens ({self.step_tokens}) must be at least max_sequences"
                f" ({self.max_sequences}): every sequence needs a token a step"
            )
        if self.mask_storage not in (None, "patch", "copy"):
            raise ValueError(f"mask_storage must be patch or copy, got {self.mask_storage!r}")
        limit = self.patch_limit
        if limit is not None and limit != "measure" and not _is_share(limit):
            raise ValueError(f"patch_limit must be from 0 to 1, or measure, got {limit!r}")


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1


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
