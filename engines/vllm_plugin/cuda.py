"""Products on CUDA: 2:4 tensor cores for many tokens, a kernel that unpacks for few.

Nothing here has run on a GPU (docs/vllm.md, "CUDA"). For many tokens it is PyTorch's documented
semi-structured path (`torch.sparse.to_sparse_semi_structured`: cuSPARSELt where PyTorch has it,
else CUTLASS). Few tokens do not pay for the tensor cores; reading fewer bytes does, so there
`engines.vllm_plugin.triton_kernel` multiplies kept values as it unpacks them. The two read
different layouts, so a sparse layer is held twice: 1.125 times the dense layer's memory.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.sparse import to_sparse_semi_structured

from engines.errors import EngineDirectoryError
from engines.native.layout import Layout
from engines.vllm_plugin.backend import DeviceKernels, PackedRows
from engines.vllm_plugin.format import COLUMN_STEP

FEW_TOKENS = 16
"""Up to here the unpacking kernel runs; a guess until somebody measures it."""

_PAIRS = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))


def unpack_kept(kept: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """(n, k/2) kept values and (n, k/8) bytes of codes -> (n, k), on any device.

    Raises:
        EngineDirectoryError: a code is no placement.
    """
    n = len(codes)
    nibbles = torch.stack((codes & 15, codes >> 4), dim=-1).reshape(n, -1)
    if bool((nibbles > 5).any()):
        raise EngineDirectoryError(
            f"a placement code is {int(nibbles.max())}, expected 0 to 5: the checkpoint is damaged"
        )
    places = torch.tensor(_PAIRS, device=codes.device)[nibbles.long()]
    dense = kept.new_zeros(n, nibbles.shape[1], 4)
    dense.scatter_(-1, places, kept.reshape(n, -1, 2))
    return dense.reshape(n, -1)


# vLLM compiles once for all numbers of tokens, so the choice between the two kernels must be made
# inside an operator; and that cannot take a semi-structured tensor, so it takes a place in a list.
_RUNS: list[PackedRows] = []


def _linear(x: torch.Tensor, handle: int, n: int, bias: torch.Tensor | None) -> torch.Tensor:
    run = _RUNS[handle]
    rows = x.reshape(-1, run.k).contiguous()
    if len(rows) <= FEW_TOKENS:
        from engines.vllm_plugin.triton_kernel import few_tokens

        out = few_tokens(rows, run.tensors["kept"], run.tensors["codes"])
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
        dense = unpack_kept(kept, codes)
        many = to_sparse_semi_structured(dense)
        return PackedRows(
            n=len(codes),
            k=codes.shape[1] * COLUMN_STEP,
            sparse=True,
            tensors={"kept": kept.clone(), "codes": codes.clone(), "many": many},
        )

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
        return DeviceKernels(isa=self._device(), layout="kept_codes v1", sparse=_KERNELS)

    @staticmethod
    def _device() -> Any:
        return torch.cuda.get_device_name()


_KERNELS = f"up to {FEW_TOKENS} tokens: triton-unpack, more: torch semi-structured"
