"""y = x W^T for few tokens: Triton kernels that read `few_token_layout` and nothing else.

At few tokens a product takes as long as its weights take to be read, and these are 9/16 of the
dense layer's bytes. So the kernels are written for the reads: weights in pieces of 16 bytes a
thread, each read once and asked for two steps ahead (`tl.range(num_stages=3)`: asynchronous copies
into shared memory), and few enough instructions on the way that the memory stays the limit. `make
gpu` compiles them and says what they need; docs/vllm.md says where they have run.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from engines.vllm_plugin.few_token_layout import WORDS, FewTokenWeight


@dataclass(frozen=True)
class Launch:
    """How a kernel is launched.

    Attributes:
        rows: of the weight that a program multiplies; a divisor of `few_token_layout.ROWS`.
        warps: of a program.
        stages: steps whose reads are under way at once, the one in work included.
    """

    rows: int
    warps: int
    stages: int


ONE_TOKEN = Launch(rows=8, warps=1, stages=3)
"""A warp a program: 512 of them for 4096 rows, so that every multiprocessor has some."""
FEW_TOKENS = Launch(rows=32, warps=4, stages=3)
"""Every program reads all tokens, from the cache; with fewer rows that would be the limit."""
TOKENS = 16
"""Tokens of a program: what the tensor cores take at least."""
PRODUCT_TYPE = tl.float32 if os.environ.get("TRITON_INTERPRET") == "1" else tl.bfloat16
"""Triton's interpreter multiplies the bits of bf16 as integers."""

# Arguments of kernels have no types: Triton compiles the annotations, too, and knows no `Any`.


@triton.jit
def one_token_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    pairs_ptr,
    shifts_ptr,
    y_ptr,
    n,
    inputs,
    words,
    rows_per_program: tl.constexpr,
    words_per_step: tl.constexpr,
    stages: tl.constexpr,
) -> None:
    """One token: multiplies on the ordinary units. `x_ptr` has a group's four inputs as int64."""
    rows = tl.program_id(0) * rows_per_program + tl.arange(0, rows_per_program)
    row = rows.to(tl.int64)[:, None]
    lane = tl.arange(0, words_per_step)
    total = tl.zeros((rows_per_program, words_per_step), dtype=tl.float32)
    for begin in tl.range(0, words, words_per_step, num_stages=stages):
        shifts = tl.load(shifts_ptr + row * words + (begin + lane)[None, :]).to(
            tl.uint32, bitcast=True
        )
        for nibble in tl.static_range(8):
            group = begin * 8 + nibble * words_per_step + lane
            pair = tl.load(pairs_ptr + row * (words * 8) + group[None, :])
            four = tl.load(x_ptr + group, mask=group * 4 < inputs, other=0)[None, :]
            move = shifts >> (4 * nibble)
            first = (four >> ((move << 4) & 48).to(tl.int64)).to(tl.int32) << 16
            second = ((four << ((move << 2) & 48).to(tl.int64)) >> 32).to(tl.int32) & -65536
            # bf16 is the upper half of a float32.
            low = (pair << 16).to(tl.float32, bitcast=True)
            high = (pair & -65536).to(tl.float32, bitcast=True)
            total += low * first.to(tl.float32, bitcast=True)
            total += high * second.to(tl.float32, bitcast=True)
    out = tl.sum(total, axis=1).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + rows, out, mask=rows < n)


@triton.jit
def few_tokens_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    pairs_ptr,
    shifts_ptr,
    y_ptr,
    tokens,
    n,
    inputs,
    words,
    rows_per_program: tl.constexpr,
    tokens_per_program: tl.constexpr,
    words_per_step: tl.constexpr,
    product_type: tl.constexpr,
) -> None:
    """More tokens: makes the dense weight again, two words a group, and multiplies it on the
    tensor cores, which have nothing better to do."""
    rows = tl.program_id(0) * rows_per_program + tl.arange(0, rows_per_program)
    token = (tl.program_id(1) * tokens_per_program + tl.arange(0, tokens_per_program))[:, None]
    row = rows.to(tl.int64)[:, None]
    lane = tl.arange(0, words_per_step)
    columns = tl.arange(0, 4 * words_per_step)
    total = tl.zeros((tokens_per_program, rows_per_program), dtype=tl.float32)
    for begin in range(0, words, words_per_step):
        shifts = tl.load(shifts_ptr + row * words + (begin + lane)[None, :]).to(
            tl.uint32, bitcast=True
        )
        for nibble in tl.static_range(8):
            at = begin * 8 + nibble * words_per_step
            pair = tl.load(pairs_ptr + row * (words * 8) + (at + lane)[None, :])
            column = (at * 4 + columns)[None, :]
            x = tl.load(
                x_ptr + token * inputs + column,
                mask=(token < tokens) & (column < inputs),
                other=0.0,
            )
            move = shifts >> (4 * nibble)
            wide = pair.to(tl.uint32, bitcast=True).to(tl.uint64)
            # Places 0 and 1: the pair moved up by the first's place; the second stays beside a
            # first at place 0 only if it is at place 1 itself.
            low = (((wide << 32) << ((move << 4) & 48).to(tl.uint64)) >> 32).to(tl.uint32)
            low = tl.where((move & 11) == 0, low & 0xFFFF, low).to(tl.int32, bitcast=True)
            # Places 2 and 3: moved down, and the first stays if it is at place 2 itself.
            high = (wide >> ((move << 2) & 48).to(tl.uint64)).to(tl.int32)
            high = tl.where((move & 14) == 0, high & -65536, high)
            even = tl.join(low.to(tl.int16), high.to(tl.int16))
            odd = tl.join((low >> 16).to(tl.int16), (high >> 16).to(tl.int16))
            dense = tl.reshape(tl.join(even, odd), (rows_per_program, 4 * words_per_step))
            weight = tl.trans(dense.to(tl.bfloat16, bitcast=True))
            total = tl.dot(x.to(product_type), weight.to(product_type), total)
    out = y_ptr + token * n + rows[None, :]
    tl.store(out, total.to(y_ptr.dtype.element_ty), mask=(token < tokens) & (rows < n)[None, :])


def few_tokens(
    x: torch.Tensor, weight: FewTokenWeight, launch: Launch | None = None
) -> torch.Tensor:
    """(tokens, k) bf16 times an (n, k) layer -> (tokens, n) bf16, summed in float32.

    Args:
        x: on the weight's device.
        weight: the layer.
        launch: other settings than the kernel's own, for measurements.
    """
    tokens, words = len(x), weight.shifts.shape[1]
    x = x.contiguous()
    if x.data_ptr() % 16:
        x = x.clone()  # the kernels read pieces of 16 bytes
    y = x.new_empty(tokens, weight.n)
    how = launch or (ONE_TOKEN if tokens == 1 else FEW_TOKENS)
    blocks = triton.cdiv(weight.n, how.rows)
    if tokens == 1:
        one_token_kernel[(blocks,)](
            x.view(torch.int64),
            weight.pairs,
            weight.shifts,
            y,
            weight.n,
            weight.k,
            words,
            rows_per_program=how.rows,
            words_per_step=WORDS,
            stages=how.stages,
            num_warps=how.warps,
            enable_fp_fusion=True,
        )
        return y
    few_tokens_kernel[(blocks, triton.cdiv(tokens, TOKENS))](
        x,
        weight.pairs,
        weight.shifts,
        y,
        tokens,
        weight.n,
        weight.k,
        words,
        rows_per_program=how.rows,
        tokens_per_program=TOKENS,
        words_per_step=WORDS,
        product_type=PRODUCT_TYPE,
        num_warps=how.warps,
        num_stages=how.stages,
        enable_fp_fusion=True,
    )
    return y
