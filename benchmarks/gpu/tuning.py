"""Other settings of the few-token kernels than those that they are launched with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gpu.masks import kept_and_codes, random_codes
from benchmarks.gpu.timing import Call, Timer
from engines.vllm_plugin.few_token_layout import FewTokenWeight, pack_few_token

if TYPE_CHECKING:
    from engines.vllm_plugin.triton_kernel import Launch

SHAPES = ((4096, 4096), (28672, 4096))
COPIES = {4096: 8, 28672: 2}
TOKEN_COUNTS = (1, 4, 16)
_FIELDS = ("rows", "warps", "stages")
ONE_TOKEN = ((8, 1, 1), (8, 1, 2), (8, 1, 3), (16, 2, 3), (32, 4, 3))
FEW_TOKENS = ((16, 2, 2), (16, 2, 3), (32, 4, 2), (32, 4, 3), (32, 2, 3))
"""(rows, warps, stages)"""


def try_launches(
    device: torch.device,
    timer: Timer,
    *,
    deadline: float,
    shapes: Sequence[tuple[int, int]] = SHAPES,
) -> list[dict[str, Any]]:
    """Milliseconds of each setting: n, k, tokens, rows, warps, stages, ms; fastest first.

    A setting that does not run has no row. Shapes are left out after the deadline.
    """
    from engines.vllm_plugin.triton_kernel import Launch

    found = []
    for n, k in shapes:
        if time.monotonic() > deadline:
            break
        weights: list[FewTokenWeight] = []
        for copy in range(COPIES.get(n, 1)):
            weight = torch.randn(n, k, device=device).to(torch.bfloat16)
            codes = random_codes(n, k, device, seed=copy)
            weights.append(pack_few_token(*kept_and_codes(weight, codes)))
        for tokens in TOKEN_COUNTS:
            x = torch.randn(tokens, k, device=device).to(torch.bfloat16)
            settings = ONE_TOKEN if tokens == 1 else FEW_TOKENS
            calls = {repr(s): _product(x, weights, Launch(*s)) for s in settings}
            times, _ = timer.times(calls, len(weights))
            measured = [(times[repr(s)], s) for s in settings if repr(s) in times]
            for seconds, setting in sorted(measured):
                named = dict(zip(_FIELDS, setting, strict=True))
                found.append({"n": n, "k": k, "tokens": tokens, **named, "ms": 1e3 * seconds})
    return found


def _product(x: torch.Tensor, weights: Sequence[FewTokenWeight], launch: Launch) -> Call:
    from engines.vllm_plugin.triton_kernel import few_tokens

    return lambda i: few_tokens(x, weights[i], launch)
