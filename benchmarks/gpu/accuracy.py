"""Every kernel against the same product in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.masks import kept_and_codes, masked, random_codes

SHAPES = ((4096, 4096), (1024, 4096), (4096, 14336), (1000, 520), (96, 320))
TOKEN_COUNTS = (1, 2, 5, 16, 17, 64, 512)
FEW_TOKENS = 64
"""Up to here the Triton kernels are compared."""


@dataclass(frozen=True)
class Case:
    """A layer and its inputs.

    Attributes:
        weight: (n, k), zero where the mask drops.
        codes: (n, k/4), the mask.
        x: (tokens, k).
        bias: (n,), of the kernels that take one.
    """

    weight: Tensor
    codes: Tensor
    x: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Agreement:
    """How far a kernel is from float64.

    Attributes:
        kernel: which.
        n: outputs.
        k: inputs.
        tokens: rows of the input.
        worst: largest error over what rounding explains (`tolerance`); up to 1 agrees.
        error: why there is no figure: the kernel failed, or has no such shape.
        refused: whether it said that it has no such shape, which is no failure.
    """

    kernel: str
    n: int
    k: int
    tokens: int
    worst: float | None
    error: str = ""
    refused: bool = False

    @property
    def agrees(self) -> bool:
        """Whether nothing is wrong with it."""
        return self.refused or (self.worst is not None and self.worst <= 1.0)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


Kernel = Callable[[Case], Tensor]


class NoSuchShapeError(ValueError):
    """A kernel does not run layers of this shape, and says so beforehand."""


def make_case(n: int, k: int, tokens: int, device: torch.device) -> Case:
    """Random bf16 weights, mask, inputs and bias."""
    generator = torch.Generator(device).manual_seed(n + k + tokens)

    def normal(*shape: int) -> Tensor:
        drawn = torch.randn(*shape, device=device, dtype=torch.float32, generator=generator)
        return drawn.to(torch.bfloat16)

    codes = random_codes(n, k, device, seed=tokens)
    return Case(masked(normal(n, k), codes), codes, normal(tokens, k), normal(n))


def compare(kernels: dict[str, Kernel], cases: Iterable[Case]) -> list[Agreement]:
    """Every kernel on every case; one that fails is a row, too."""
    found = []
    for case in cases:
        (n, k), tokens = case.weight.shape, len(case.x)
        exact = case.x.double() @ case.weight.double().T
        limit = tolerance(case, exact)
        for name, kernel in kernels.items():
            try:
                y = kernel(case)
            except NoSuchShapeError as error:
                found.append(Agreement(name, n, k, tokens, None, str(error), refused=True))
                continue
            except Exception as error:  # whatever it is, it belongs in the report
                line = (str(error) or type(error).__name__).splitlines()[0]
                found.append(Agreement(name, n, k, tokens, None, line))
                continue
            worst = float(((y.double() - exact).abs() / limit).nan_to_num(nan=torch.inf).max())
            found.append(Agreement(name, n, k, tokens, worst))
    return found


def tolerance(case: Case, exact: Tensor) -> Tensor:
    """What rounding explains of an element's error.

    A unit in the last place of the bf16 result, of which a GPU needs half (Triton's interpreter
    cuts off) and a bias added to it the other half; and 2^-16 of the sum of magnitudes, which is
    far more than float32 sums of random signs are off.
    """
    magnitudes = case.x.double().abs() @ case.weight.double().abs().T
    return (exact.abs() + case.bias.double().abs()) * 2.0**-7 + magnitudes * 2.0**-16


def triton_kernels() -> dict[str, Kernel]:
    """What the plugin runs up to 16 tokens; needs a GPU, or Triton's interpreter."""
    from engines.vllm_plugin.few_token_layout import pack_few_token
    from engines.vllm_plugin.triton_kernel import few_tokens

    def run(case: Case) -> Tensor:
        if len(case.x) > FEW_TOKENS:
            raise NoSuchShapeError(f"not meant for more than {FEW_TOKENS} tokens")
        return few_tokens(case.x, pack_few_token(*kept_and_codes(case.weight, case.codes)))

    return {"plugin: few tokens (Triton)": run}


def gpu_kernels() -> dict[str, Kernel]:
    """The plugin's operator, its many-token path, and the reference engine's, on CUDA."""
    from engines.reference.semi_structured import pack, sparse_tensor, unfit
    from engines.vllm_plugin.cuda import CudaBackend

    backend = CudaBackend()

    def fitting(case: Case) -> None:
        reason = unfit(tuple(case.weight.shape), case.weight.dtype)
        if reason is not None:
            raise NoSuchShapeError(reason)

    def operator(case: Case) -> Tensor:
        fitting(case)
        run = backend.adopt(backend.pack_sparse(*kept_and_codes(case.weight, case.codes)))
        return backend.multiply(case.x, run, case.bias.float()).double() - case.bias.double()

    def many(case: Case) -> Tensor:
        fitting(case)
        run = backend.pack_sparse(*kept_and_codes(case.weight, case.codes))
        return torch.nn.functional.linear(case.x, run.tensors["many"])

    def reference(case: Case) -> Tensor:
        fitting(case)
        return torch.nn.functional.linear(
            case.x, sparse_tensor(pack(case.weight), case.weight.device)
        )

    return {
        **triton_kernels(),
        "plugin: operator": operator,
        "plugin: many tokens (semi-structured)": many,
        "reference engine (CUTLASS)": reference,
    }
