"""Products on the CPU: twofour's native kernels, in OpenMP's own pool of threads.

vLLM binds that pool's threads to cores (VLLM_CPU_OMP_THREADS_BIND); the kernels run in it and start
none of their own.
"""

from __future__ import annotations

import numpy as np
import torch

import engines.native.torch_ops  # noqa: F401  (registers the operator)
from engines.errors import EngineDirectoryError
from engines.native import kernels, layout, lowbit
from engines.native.layout import BF16, Layout, PackedWeights
from engines.vllm_plugin.backend import DeviceKernels, PackedRows
from engines.vllm_plugin.format import COLUMN_STEP, dense_values, unpack_nibbles

_REPORTED_TOKENS = (1, 8, 32, 512)


class CpuBackend:
    """See `engines.vllm_plugin.backend.Backend`."""

    def pack_sparse(self, kept: torch.Tensor, codes: torch.Tensor) -> PackedRows:
        k = codes.shape[1] * COLUMN_STEP
        unpacked = unpack_nibbles(codes.numpy(), k // 4)
        if unpacked.max(initial=0) > 5:
            raise EngineDirectoryError(
                f"a placement code is {unpacked.max()}, expected 0 to 5: the checkpoint is damaged"
            )
        dense = dense_values(_bf16(kept), None, unpacked)
        return packed_rows(layout.pack_sparse(dense, unpacked))

    def pack_dense(self, weight: torch.Tensor) -> PackedRows:
        return packed_rows(layout.pack_dense(_bf16(weight)))

    def adopt(self, run: PackedRows) -> PackedRows:
        return run

    def multiply(self, x: torch.Tensor, run: PackedRows, bias: torch.Tensor | None) -> torch.Tensor:
        packed = run.tensors["packed"]
        result: torch.Tensor = torch.ops.twofour.linear.default(
            x, packed, run.layout, run.n, bias, run.block, run.minima
        )
        return result

    def describe(self, name: str, run: PackedRows) -> str:
        kind = Layout(run.layout)
        used = {t: kernels.kernel_name(kind, t) for t in _REPORTED_TOKENS}
        by_tokens = ", ".join(f"{t} tokens: {kernel}" for t, kernel in used.items())
        what = "sparse" if run.sparse else "dense"
        what = (
            "2:4" if kind is Layout.SPARSE24_BF16 else f"{what} {kind.values}".removesuffix(" bf16")
        )
        return f"{name} {run.n}x{run.k} runs {what} on {kernels.isa()} ({by_tokens})"

    def kernels(self, kind: Layout) -> DeviceKernels:
        version = lowbit.VERSION if kind.lowbit else layout.VERSION
        return DeviceKernels(
            isa=kernels.isa(),
            layout=f"{kind.name.lower()} v{version}",
            sparse=kernels.kernel_name(kind, 1),
        )


def _bf16(tensor: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.void]]:
    return tensor.contiguous().view(torch.uint16).numpy().view(BF16)


def packed_rows(packed: PackedWeights) -> PackedRows:
    """Packed weights as rows that `CpuBackend.multiply` takes."""
    return PackedRows(
        n=packed.n,
        k=packed.k,
        sparse=packed.layout.sparse,
        tensors={"packed": torch.from_numpy(packed.data)},
        layout=int(packed.layout),
        block=packed.block,
        minima=packed.minima,
    )
