"""Products: right against float64, alike on every instruction set, the same bits in any batch."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.native import kernels, layout
from engines.native.kernels import KernelError
from engines.native.layout import BF16, PackedWeights
from maskgen.format.pattern import TWO_FOUR
from maskgen.format.placements import keep_from_codes

ISAS = kernels.supported_isas()
# Around every kernel's panel size (4 and 8 tokens), one pass over the weights (64), several passes.
TOKENS = (1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17, 31, 64, 65, 130)


def layer(n: int, k: int, seed: int = 0) -> tuple[PackedWeights, PackedWeights, np.ndarray]:
    """A sparse layer, a dense one of the same weights, and what the sparse one keeps (float64)."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((n, k)).astype(BF16)
    codes = rng.integers(0, 6, (n, k // 4), dtype=np.uint8)
    kept = np.where(keep_from_codes(codes, TWO_FOUR), weights.astype(np.float64), 0.0)
    return layout.pack_sparse(weights, codes), layout.pack_dense(kept.astype(BF16)), kept


def activations(tokens: int, k: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((tokens, k)).astype(np.float32)


def rounded(x: np.ndarray) -> np.ndarray:
    return x.astype(BF16).astype(np.float64)


def bound(kept: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The classical bound of a chain of k fp32 additions: k * 2^-24 * sum of |products|."""
    return (kept.shape[1] + 2) * 2.0**-24 * (np.abs(rounded(x)) @ np.abs(kept).T) + 1e-30


@pytest.mark.parametrize("isa", ISAS)
@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 70),
    groups=st.integers(1, 60),
    tokens=st.integers(1, 40),
    threads=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape_agrees_with_float64(
    isa: str, n: int, groups: int, tokens: int, threads: int, seed: int
) -> None:
    sparse, dense, kept = layer(n, 4 * groups, seed)
    x = activations(tokens, 4 * groups, seed)
    exact = rounded(x) @ kept.T
    for weights in (sparse, dense):
        result = kernels.linear(weights, x, threads=threads, isa=isa)
        assert (np.abs(result - exact) <= bound(kept, x)).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("tokens", TOKENS)
def test_layers_wider_than_a_chunk_agree_with_float64(isa: str, tokens: int) -> None:
    sparse, dense, kept = layer(80, 1540)
    x = activations(tokens, 1540)
    exact = rounded(x) @ kept.T
    for weights in (sparse, dense):
        result = kernels.linear(weights, x, isa=isa)
        assert (np.abs(result - exact) <= bound(kept, x)).all()


@pytest.mark.parametrize("isa", [name for name in ISAS if name != "portable"])
def test_instruction_sets_agree_with_the_portable_kernel(isa: str) -> None:
    sparse, dense, kept = layer(100, 576)
    x = activations(33, 576)
    for weights in (sparse, dense):
        portable = kernels.linear(weights, x, isa="portable")
        result = kernels.linear(weights, x, isa=isa)
        assert (np.abs(result - portable) <= 2 * bound(kept, x)).all()


@pytest.mark.parametrize("isa", ISAS)
def test_a_token_gets_the_same_bits_in_any_batch(isa: str) -> None:
    sparse, dense, _ = layer(70, 1100)
    x = activations(max(TOKENS), 1100)
    for weights in (sparse, dense):
        alone = np.concatenate([kernels.linear(weights, row[None], isa=isa) for row in x])
        for tokens in TOKENS:
            for threads in (1, 2, 3):
                batched = kernels.linear(weights, x[:tokens], threads=threads, isa=isa)
                np.testing.assert_array_equal(
                    batched.view(np.uint32), alone[:tokens].view(np.uint32)
                )


@pytest.mark.parametrize("isa", ISAS)
def test_bias_addition_and_bf16_output(isa: str) -> None:
    sparse, _, _ = layer(37, 64)
    x = activations(11, 64)
    plain = kernels.linear(sparse, x, isa=isa)
    bias = activations(1, 37, 2)[0]
    with_bias = kernels.linear(sparse, x, bias=bias, isa=isa)
    np.testing.assert_array_equal(with_bias, plain + bias)
    residual = activations(11, 37, 3)
    added = kernels.linear(sparse, x, out=residual.copy(), add=True, isa=isa)
    np.testing.assert_array_equal(added, residual + plain)
    half = kernels.linear(sparse, x, bias=bias, out=np.empty((11, 37), BF16), isa=isa)
    np.testing.assert_array_equal(half.view(np.uint16), with_bias.astype(BF16).view(np.uint16))


@pytest.mark.parametrize("isa", ISAS)
def test_bf16_activations_give_the_bits_of_rounded_ones(isa: str) -> None:
    sparse, _, _ = layer(16, 96)
    x = activations(5, 96)
    np.testing.assert_array_equal(
        kernels.linear(sparse, x, isa=isa), kernels.linear(sparse, x.astype(BF16), isa=isa)
    )


@pytest.mark.parametrize("isa", ISAS)
def test_gated_product(isa: str) -> None:
    up_sparse, up_dense, _ = layer(45, 100, 1)
    gate_sparse, gate_dense, _ = layer(45, 100, 2)
    for gate, up in ((gate_sparse, up_sparse), (gate_dense, up_dense)):
        for tokens in (1, 8, 70):
            x = activations(tokens, 100)
            g = kernels.linear(gate, x, isa=isa).astype(np.float64)
            expected = g / (1 + np.exp(-g)) * kernels.linear(up, x, isa=isa)
            result = kernels.gated(gate, up, x, isa=isa)
            np.testing.assert_allclose(result, expected, rtol=2e-6, atol=1e-30)


@pytest.mark.parametrize("isa", ISAS)
def test_gated_product_of_extreme_values(isa: str) -> None:
    weights = np.zeros((16, 4), np.float32)
    weights[:, 0] = 1
    packed = layout.pack_dense(weights.astype(BF16))
    x = np.zeros((5, 4), np.float32)
    x[:, 0] = [-1e30, -1000, 0, 1000, np.nan]
    result = kernels.gated(packed, packed, x, isa=isa)[:, 0]
    assert result[2] == 0
    assert result[3] == 1e6
    assert abs(result[1]) < 1e-20
    assert np.isnan(result[4])


@pytest.mark.parametrize("isa", ISAS)
def test_nan_and_infinity_reach_only_their_own_token(isa: str) -> None:
    sparse, dense, kept = layer(20, 36)
    x = activations(6, 36)
    x[2, 5], x[4, 7] = np.nan, np.inf
    uses = kept[:, 5] != 0
    for weights in (sparse, dense):
        result = kernels.linear(weights, x, isa=isa)
        assert np.isfinite(result[[0, 1, 3, 5]]).all()
        assert np.isnan(result[2, uses]).all()
    alone = kernels.linear(sparse, x[2:3], isa=isa)
    assert np.isfinite(alone[0, ~uses]).all()


def run_with_isa(value: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import numpy as np\n"
        "from engines.native import kernels, layout\n"
        "from engines.native.layout import BF16, Layout\n"
        "w = layout.pack_dense(np.ones((16, 32), np.float32).astype(BF16))\n"
        "kernels.linear(w, np.ones((1, 32), np.float32))\n"
        "print(kernels.isa(), kernels.kernel_name(Layout.SPARSE24_BF16, 1))\n"
    )
    environment = {**os.environ, "TWOFOUR_ISA": value}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("isa", ISAS)
def test_a_forced_instruction_set_is_used(isa: str) -> None:
    done = run_with_isa(isa)
    name = kernels.kernel_name(layout.Layout.SPARSE24_BF16, 1, isa)
    assert done.stdout.split() == [isa, name], done.stderr


def test_without_a_wish_the_best_is_used() -> None:
    assert run_with_isa("").stdout.split()[0] == ISAS[-1]


@pytest.mark.parametrize(
    "isa", ["sse9", "AVX2", *sorted({"avx2", "avx512", "avx512_bf16"} - {*ISAS})]
)
def test_an_instruction_set_that_is_not_there_is_an_error(isa: str) -> None:
    done = run_with_isa(isa)
    assert done.returncode != 0
    assert isa in done.stderr
    assert "portable" in done.stderr


def test_kernel_names_tell_instruction_sets_apart() -> None:
    names = {kernels.kernel_name(layout.Layout.SPARSE24_BF16, 1, isa) for isa in ISAS}
    assert len(names) == len(ISAS)


def test_misfits_are_refused() -> None:
    sparse, dense, _ = layer(16, 32)
    x = activations(2, 32)
    with pytest.raises(KernelError, match="64 inputs, the weights 32"):
        kernels.linear(sparse, activations(2, 64))
    with pytest.raises(KernelError, match="float32 or bfloat16"):
        kernels.linear(sparse, x.astype(np.float64))
    with pytest.raises(KernelError, match="2 x 16"):
        kernels.linear(sparse, x, out=np.empty((2, 17), np.float32))
    with pytest.raises(KernelError, match="16 values"):
        kernels.linear(sparse, x, bias=np.zeros(15, np.float32))
    with pytest.raises(KernelError, match="contiguous"):
        kernels.linear(sparse, activations(32, 2).T)
    with pytest.raises(KernelError, match="'mmx'"):
        kernels.linear(sparse, x, isa="mmx")
    with pytest.raises(KernelError, match="must agree"):
        kernels.gated(sparse, dense, x)
    with pytest.raises(KernelError, match="out="):
        kernels.linear(sparse, x, add=True)


def test_no_tokens_is_an_empty_product() -> None:
    sparse, _, _ = layer(16, 32)
    assert kernels.linear(sparse, np.empty((0, 32), np.float32)).shape == (0, 16)


def test_the_gil_is_released() -> None:
    """Another thread gets its turns while a long product runs."""
    sparse, _, _ = layer(256, 1024)
    x = activations(256, 1024)
    running, turns = threading.Event(), 0

    def multiply() -> None:
        running.set()
        kernels.linear(sparse, x, threads=1, isa="portable")
        running.clear()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # threads change places only where one lets go
    try:
        thread = threading.Thread(target=multiply)
        thread.start()
        running.wait()
        while running.is_set():
            turns += 1
            time.sleep(0)
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert turns > 20


def test_reading_takes_any_buffer() -> None:
    for isa in ISAS:
        kernels.read(np.zeros(1 << 20, np.uint8), isa=isa)
