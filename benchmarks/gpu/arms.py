"""The products that are timed side by side: dense and 2:4, in bf16, FP8 and int8.

Each arm takes a layer's masked bf16 weight, converts it once, and gives a call for a number of
tokens. What converting activations to FP8 or int8 costs is not in it. An arm that torch, its
libraries or the GPU lack raises whatever they raise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.masks import kept_and_codes, masked

Product = Callable[[], object]
Prepared = Callable[[Tensor], Product]
"""Inputs (tokens, k) in bf16 -> a call that multiplies them."""


@dataclass(frozen=True)
class GpuArm:
    """A way to multiply.

    Attributes:
        name: in tables.
        values: type of the weights: `bf16`, `fp8` or `int8`.
        bytes_a_weight: what it reads of the weights, per weight of the dense layer.
        prepare: (n, k) bf16 weight without a mask and its codes -> `Prepared`.
        most_tokens: beyond which it is not meant to run.
    """

    name: str
    values: str
    bytes_a_weight: float
    prepare: Callable[[Tensor, Tensor], Prepared]
    most_tokens: int = 1 << 30


def _dense_bf16(weight: Tensor, codes: Tensor) -> Prepared:
    return lambda x: lambda: torch.nn.functional.linear(x, weight)


def _plugin_few(weight: Tensor, codes: Tensor) -> Prepared:
    from engines.vllm_plugin.few_token_layout import pack_few_token
    from engines.vllm_plugin.triton_kernel import few_tokens

    packed = pack_few_token(*kept_and_codes(weight, codes))
    return lambda x: lambda: few_tokens(x, packed)


def _plugin_many(weight: Tensor, codes: Tensor) -> Prepared:
    from torch.sparse import to_sparse_semi_structured

    sparse = to_sparse_semi_structured(masked(weight, codes))
    return lambda x: lambda: torch.nn.functional.linear(x, sparse)


def _cutlass(weight: Tensor, codes: Tensor) -> Prepared:
    from engines.reference.semi_structured import pack, sparse_tensor

    sparse = sparse_tensor(pack(masked(weight, codes)), weight.device)
    return lambda x: lambda: torch.nn.functional.linear(x, sparse)


def _cusparselt(dtype: torch.dtype) -> Callable[[Tensor, Tensor], Prepared]:
    def prepare(weight: Tensor, codes: Tensor) -> Prepared:
        packed = torch._cslt_compress(_narrow(masked(weight, codes), dtype))
        multiply: Any = torch._cslt_sparse_mm

        def prepared(x: Tensor) -> Product:
            columns = _padded(_narrow(x, dtype)).t()
            return lambda: multiply(packed, columns, out_dtype=torch.bfloat16)

        return prepared

    return prepare


def _dense_fp8(weight: Tensor, codes: Tensor) -> Prepared:
    columns = _narrow(weight, torch.float8_e4m3fn).t()
    one = torch.ones((), device=weight.device)
    multiply: Any = torch._scaled_mm

    def prepared(x: Tensor) -> Product:
        rows = _padded(_narrow(x, torch.float8_e4m3fn))
        return lambda: multiply(rows, columns, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)

    return prepared


def _dense_int8(weight: Tensor, codes: Tensor) -> Prepared:
    columns = _narrow(weight, torch.int8).t()

    def prepared(x: Tensor) -> Product:
        rows = _padded(_narrow(x, torch.int8))
        return lambda: torch._int_mm(rows, columns)

    return prepared


def _narrow(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Values in another type, brought into its range; which they are does not matter to time."""
    scale = 127 / float(x.abs().max()) if dtype is torch.int8 else 1.0
    return (x.float() * scale).to(dtype)


def _padded(x: Tensor) -> Tensor:
    """At least 32 rows, a multiple of 8: what these products take."""
    rows = max(32, -(-len(x) // 8) * 8)
    out = x.new_zeros(rows, x.shape[1])
    out[: len(x)] = x
    return out


DENSE = {"bf16": "cuBLAS", "fp8": "cuBLAS FP8", "int8": "cuBLAS int8"}
"""What the sparse arms of each type are compared with."""

ARMS = (
    GpuArm(DENSE["bf16"], "bf16", 2.0, _dense_bf16),
    GpuArm("ours, few tokens", "bf16", 2.0 * 9 / 16, _plugin_few, most_tokens=64),
    GpuArm("torch 2:4", "bf16", 2.0 * 9 / 16, _plugin_many),
    GpuArm("CUTLASS 2:4", "bf16", 2.0 * 9 / 16, _cutlass),
    GpuArm("cuSPARSELt 2:4", "bf16", 2.0 * 9 / 16, _cusparselt(torch.bfloat16)),
    GpuArm(DENSE["fp8"], "fp8", 1.0, _dense_fp8),
    GpuArm("cuSPARSELt FP8 2:4", "fp8", 0.625, _cusparselt(torch.float8_e4m3fn)),
    GpuArm(DENSE["int8"], "int8", 1.0, _dense_int8),
    GpuArm("cuSPARSELt int8 2:4", "int8", 0.625, _cusparselt(torch.int8)),
)
