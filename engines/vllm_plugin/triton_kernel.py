"""y = x W^T for few tokens: a Triton kernel that reads kept values and codes and nothing else.

9 bits are read where a dense bf16 weight has 16. Each program takes a block of rows; for each kept
value it finds the input's place from the group's code and gathers that activation.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

BLOCK_ROWS = 16
BLOCK_KEPT = 128


@triton.jit
def _kernel(
    x_ptr: Any,
    kept_ptr: Any,
    codes_ptr: Any,
    y_ptr: Any,
    n: Any,
    half: Any,
    code_stride: Any,
    x_stride: Any,
    y_stride: Any,
    rows_per_program: tl.constexpr,
    kept_per_step: tl.constexpr,
) -> None:
    token = tl.program_id(1)
    rows = tl.program_id(0) * rows_per_program + tl.arange(0, rows_per_program)
    steps = tl.arange(0, kept_per_step)
    in_rows = (rows < n)[:, None]
    total = tl.zeros((rows_per_program,), dtype=tl.float32)
    for begin in range(0, half, kept_per_step):
        kept_index = begin + steps  # position among the row's kept values
        valid = in_rows & (kept_index < half)[None, :]
        group = kept_index // 2
        byte = tl.load(
            codes_ptr + rows[:, None] * code_stride + (group // 2)[None, :], mask=valid, other=0
        ).to(tl.int32)
        code = tl.where((group % 2 == 0)[None, :], byte & 15, byte >> 4)
        # Kept places by code: 01 02 03 12 13 23.
        first = tl.where(code < 3, 0, tl.where(code < 5, 1, 2))
        second = tl.where(code < 3, code + 1, tl.where(code < 5, code - 1, 3))
        place = tl.where((kept_index % 2 == 0)[None, :], first, second)
        value = tl.load(
            kept_ptr + rows[:, None] * half + kept_index[None, :], mask=valid, other=0.0
        ).to(tl.float32)
        column = group[None, :] * 4 + place
        x = tl.load(x_ptr + token * x_stride + column, mask=valid, other=0.0).to(tl.float32)
        total += tl.sum(value * x, axis=1)
    tl.store(y_ptr + token * y_stride + rows, total.to(y_ptr.dtype.element_ty), mask=rows < n)


def few_tokens(x: torch.Tensor, kept: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """(tokens, k) bf16, (n, k/2) bf16, (n, k/8) uint8 -> (tokens, n) bf16, summed in float32."""
    tokens, n = len(x), len(kept)
    y = x.new_empty(tokens, n)
    grid = (triton.cdiv(n, BLOCK_ROWS), tokens)
    _kernel[grid](
        x,
        kept,
        codes,
        y,
        n,
        kept.shape[1],
        codes.stride(0),
        x.stride(0),
        y.stride(0),
        rows_per_program=BLOCK_ROWS,
        kept_per_step=BLOCK_KEPT,
    )
    return y
