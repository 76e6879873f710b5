"""Products on CUDA: sparse tensor cores for many tokens, a kernel that unpacks for few.

Nothing here has run on a GPU (docs/vllm.md, "CUDA"). For many tokens it is PyTorch's documented
semi-structured path (`torch.sparse.to_sparse_semi_structured`: cuSPARSELt where PyTorch has it,
else CUTLASS). Few tokens are a matter of bytes, and there `engines.vllm_plugin.triton_kernel`
multiplies kept values as it unpacks them. The two read different layouts, so a sparse layer is held
twice: 1.125 times the dense layer's memory. `benchmarks.gpu` runs this on machines that have torch
and Triton and nothing else, so nothing else is imported.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.sparse import to_sparse_semi_structured

from engines.vllm_plugin.backend import DeviceKernels, PackedRows
from engines.vllm_plugin.few_token_layout import FewTokenWeight, pack_few_token, unpack_kept

if TYPE_CHECKING:
    from engines.native.layout import Layout

FEW_TOKENS = 16
"""Up to here the unpacking kernel runs; a guess until somebody measures it."""

# vLLM compiles once for all numbers of tokens, so the choice between the two kernels must be made
# inside an operator; and that cannot take a semi-structured tensor, so it takes a place in a list.
_RUNS: list[PackedRows] = []


def forget_runs() -> None:
    """Give back the memory of all adopted runs; what multiplies with them must be gone."""
    _RUNS.clear()


def _linear(x: torch.Tensor, handle: int, n: int, bias: torch.Tensor | None) -> torch.Tensor:
    run = _RUNS[handle]
    rows = x.reshape(-1, run.k).contiguous()
    if len(rows) <= FEW_TOKENS:
        from engines.vllm_plugin.triton_kernel import few_tokens

        weight = FewTokenWeight(run.tensors["pairs"], run.tensors["shifts"], run.n, run.k)
        out = few_tokens(rows, weight)
        out = out if bias is None else out + bias
    else:
        out = torch.nn.functional.linear(rows, run.tensors["many"], bias)
    return out.reshape(*x.shape[:-1], n)


def _linear_fake(x: torch.Tensor, handle: int, n: int, bias: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], n))


_LIBRARY = torch.library.Library("twofour", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "linear_cuda(Tensor x, int handle, int n, Tensor? bias) -> Tensor"
)
_LIBRARY.impl("linear_cuda", _linear, "CUDA")  # type: ignore[no-untyped-call]
_LIBRARY.impl("linear_cuda", _linear_fake, "Meta")  # type: ignore[no-untyped-call]


class CudaBackend:
    """See `engines.vllm_plugin.backend.Backend`."""

    def pack_sparse(self, kept: torch.Tensor, codes: torch.Tensor) -> PackedRows:
        few = pack_few_token(kept, codes)
        many = to_sparse_semi_structured(unpack_kept(kept, codes))
        tensors = {"pairs": few.pairs, "shifts": few.shifts, "many": many}
        return PackedRows(n=few.n, k=few.k, sparse=True, tensors=tensors)

    def pack_dense(self, weight: torch.Tensor) -> PackedRows:
        n, k = weight.shape
        return PackedRows(n=n, k=k, sparse=False, tensors={"weight": weight.clone()})

    def adopt(self, run: PackedRows) -> PackedRows:
        _RUNS.append(run)
        return replace(run, handle=len(_RUNS) - 1)

    def multiply(self, x: torch.Tensor, run: PackedRows, bias: torch.Tensor | None) -> torch.Tensor:
        own = None if bias is None else bias.to(x.dtype)
        if not run.sparse:
            return torch.nn.functional.linear(x, run.tensors["weight"], own)
        result: torch.Tensor = torch.ops.twofour.linear_cuda.default(x, run.handle, run.n, own)
        return result

    def describe(self, name: str, run: PackedRows) -> str:
        if not run.sparse:
            return f"{name} {run.n}x{run.k} runs dense on {self._device()}"
        return f"{name} {run.n}x{run.k} runs 2:4 on {self._device()} ({_KERNELS})"

    def kernels(self, kind: Layout) -> DeviceKernels:
        return DeviceKernels(isa=self._device(), layout="pairs_shifts v1", sparse=_KERNELS)

    @staticmethod
    def _device() -> Any:
        return torch.cuda.get_device_name()


_KERNELS = f"up to {FEW_TOKENS} tokens: triton-unpack, more: torch semi-structured"
