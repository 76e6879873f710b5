"""Products on the CPU: twofour's native kernels, in OpenMP's own pool of threads.

vLLM binds that pool's threads to cores (VLLM_CPU_OMP_THREADS_BIND); the kernels run in it and start
none of their own.
"""

from __future__ import annotations

import numpy as np
import torch

import engines.native.torch_ops  # noqa: F401  (registers the operator)
from engines.errors import EngineDirectoryError
from engines.native import kernels, layout
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
        return _run(layout.pack_sparse(dense, unpacked))

    def pack_dense(self, weight: torch.Tensor) -> PackedRows:
        return _run(layout.pack_dense(_bf16(weight)))

    def adopt(self, run: PackedRows) -> PackedRows:
        return run

    def multiply(self, x: torch.Tensor, run: PackedRows, bias: torch.Tensor | None) -> torch.Tensor:
        kind = Layout.SPARSE24_BF16 if run.sparse else Layout.DENSE_BF16
        packed = run.tensors["packed"]
        result: torch.Tensor = torch.ops.twofour.linear.default(x, packed, int(kind), run.n, bias)
        return result

    def describe(self, name: str, run: PackedRows) -> str:
        kind = Layout.SPARSE24_BF16 if run.sparse else Layout.DENSE_BF16
        used = {t: kernels.kernel_name(kind, t) for t in _REPORTED_TOKENS}
        by_tokens = ", ".join(f"{t} tokens: {kernel}" for t, kernel in used.items())
        what = "2:4" if run.sparse else "dense"
        return f"{name} {run.n}x{run.k} runs {what} on {kernels.isa()} ({by_tokens})"

    def kernels(self) -> DeviceKernels:
        return DeviceKernels(
            isa=kernels.isa(),
            layout=f"sparse24_bf16 v{layout.VERSION}",
            sparse=kernels.kernel_name(Layout.SPARSE24_BF16, 1),
        )


def _bf16(tensor: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.void]]:
    return tensor.contiguous().view(torch.uint16).numpy().view(BF16)


def _run(packed: PackedWeights) -> PackedRows:
    return PackedRows(
        n=packed.n,
        k=packed.k,
        sparse=packed.layout is Layout.SPARSE24_BF16,
        tensors={"packed": torch.from_numpy(packed.data)},
    )
