"""The torch operator: what torch's own checks demand, and the numbers of `F.linear`."""

from __future__ import annotations

import numpy as np
import pytest

from maskgen.format.pattern import TWO_FOUR

torch = pytest.importorskip("torch")

from engines.native import kernels, lowbit  # noqa: E402
from engines.native.layout import Layout  # noqa: E402
from engines.native.torch_ops import linear, pack_tensor  # noqa: E402
from maskgen.format.placements import keep_from_codes  # noqa: E402
from tests.engines.native.lowbit_reference import random_weights  # noqa: E402


def layer(n: int = 48, k: int = 96) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Masked bf16 weights, and the same packed sparse and dense."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 6, (n, k // 4), dtype=np.uint8)
    weights = torch.from_numpy(rng.standard_normal((n, k), dtype=np.float32)).bfloat16()
    weights *= torch.from_numpy(keep_from_codes(codes, TWO_FOUR))
    return weights, pack_tensor(weights, torch.from_numpy(codes)), pack_tensor(weights, None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shape", [(96,), (5, 96), (2, 3, 96)])
def test_it_agrees_with_torch(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    weights, sparse, dense = layer()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    bias = torch.linspace(-1, 1, 48, dtype=dtype)
    exact = torch.nn.functional.linear(x.bfloat16().double(), weights.double(), bias.double())
    for packed, layout in ((sparse, Layout.SPARSE24_BF16), (dense, Layout.DENSE_BF16)):
        result = linear(x, packed, int(layout), 48, bias)
        assert result.dtype == dtype
        torch.testing.assert_close(result, exact.to(dtype), atol=1e-4, rtol=1e-2)


def test_torch_accepts_the_operator() -> None:
    _, sparse, _ = layer()
    for x in (torch.randn(3, 96), torch.randn(2, 2, 96).bfloat16(), torch.randn(0, 96)):
        for bias in (None, torch.zeros(48)):
            torch.library.opcheck(linear, (x, sparse, int(Layout.SPARSE24_BF16), 48, bias))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("minima", [False, True])
def test_int4_products_have_the_bits_of_the_kernels(dtype: torch.dtype, minima: bool) -> None:
    layout = Layout.SPARSE24_INT4
    packed = lowbit.pack(layout, random_weights(layout, 37, 96, 32, minima=minima))
    data = torch.from_numpy(packed.data)
    x = torch.randn((3, 96), generator=torch.Generator().manual_seed(1)).to(dtype)
    found = linear(x, data, int(layout), 37, None, 32, minima)
    expected = torch.from_numpy(kernels.linear(packed, x.float().numpy())).to(dtype)
    assert torch.equal(found, expected)
    torch.library.opcheck(linear, (x, data, int(layout), 37, None, 32, minima))
    with pytest.raises(ValueError, match=r"take .* bytes"):
        linear(x, data, int(layout), 37, None, 64, minima)
    with pytest.raises(ValueError, match="32, 64 or 128"):
        linear(x, data, int(layout), 37, None)


def test_it_is_reached_through_torch_ops() -> None:
    _, sparse, _ = layer()
    x = torch.randn(3, 96)
    torch.testing.assert_close(
        torch.ops.twofour.linear(x, sparse, 1, 48, None), linear(x, sparse, 1, 48, None)
    )


def test_it_alternates_with_torchs_own_kernels() -> None:
    """Both use one OpenMP pool; neither disturbs the other's results."""
    weights, sparse, _ = layer()
    x = torch.randn(7, 96).bfloat16()
    ours, theirs = linear(x, sparse, 1, 48, None), torch.nn.functional.linear(x, weights)
    for threads in (1, 2, 1):
        torch.set_num_threads(threads)
        for _ in range(5):
            assert torch.equal(linear(x, sparse, 1, 48, None), ours)
            torch.testing.assert_close(torch.nn.functional.linear(x, weights), theirs)


def test_misfits_are_refused() -> None:
    _, sparse, _ = layer()
    with pytest.raises(ValueError, match="float64"):
        linear(torch.randn(3, 96).double(), sparse, 1, 48, None)
    with pytest.raises(ValueError, match=r"take .* bytes"):
        linear(torch.randn(3, 64), sparse, 1, 48, None)
    with pytest.raises(ValueError, match="layout 9 is unknown"):
        linear(torch.randn(3, 96), sparse, 9, 48, None)
    with pytest.raises(ValueError, match="48 values"):
        linear(torch.randn(3, 96), sparse, 1, 48, torch.zeros(47))
    with pytest.raises(ValueError, match="contiguous uint8"):
        linear(torch.randn(3, 96), sparse[::2], 1, 48, None)


def test_strided_activations() -> None:
    _, sparse, _ = layer()
    wide = torch.randn(3, 192).bfloat16()
    x = wide[:, ::2]
    assert torch.equal(linear(x, sparse, 1, 48, None), linear(x.contiguous(), sparse, 1, 48, None))
