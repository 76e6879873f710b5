"""What of the CUDA path can be checked without a device.

Unpacking, and the Triton kernel in Triton's interpreter.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from engines.errors import EngineDirectoryError
from engines.native.layout import BF16
from engines.vllm_plugin.few_token_layout import GROUPS, WORDS, pack_few_token, unpack_kept
from engines.vllm_plugin.format import dense_values, kept_values, pack_nibbles

CHECK = """
import numpy as np, torch
from engines.vllm_plugin.few_token_layout import pack_few_token, unpack_kept
from engines.vllm_plugin.triton_kernel import Launch, few_tokens
rng = np.random.default_rng(0)
shapes = [(16, 256), (20, 264), (1, 8), (40, 1032)]
cases = [(*shape, tokens, None) for shape in shapes for tokens in (1, 2, 17)]
cases += [(33, 520, 1, Launch(32, 4, 1)), (33, 520, 3, Launch(16, 2, 2))]
for n, k, tokens, launch in cases:
    codes = torch.from_numpy(
        (rng.integers(0, 6, (n, k // 8)) | rng.integers(0, 6, (n, k // 8)) << 4).astype(np.uint8))
    kept = torch.from_numpy(rng.standard_normal((n, k // 2)).astype(np.float32)).bfloat16()
    x = torch.from_numpy(rng.standard_normal((tokens, k)).astype(np.float32)).bfloat16()
    exact = x.double() @ unpack_kept(kept, codes).double().T
    x = torch.nn.functional.pad(x.flatten(), (1, 0))[1:].view(tokens, k)  # not aligned
    found = few_tokens(x, pack_few_token(kept, codes), launch)
    torch.testing.assert_close(found.double(), exact, atol=1e-2, rtol=1e-2)
print("agreed")
"""


def layer(n: int, k: int) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 6, (n, k // 4)).astype(np.uint8)
    kept = kept_values(rng.standard_normal((n, k)).astype(BF16), codes)
    return (
        dense_values(kept, None, codes),
        torch.from_numpy(kept.view(np.uint16)).view(torch.bfloat16),
        torch.from_numpy(pack_nibbles(codes)),
    )


def test_unpack() -> None:
    dense, kept, codes = layer(24, 64)
    found = unpack_kept(kept, codes).view(torch.uint16).numpy().view(BF16)
    assert np.array_equal(found, dense)
    codes[3, 2] = 0x60
    with pytest.raises(EngineDirectoryError, match="6, expected 0 to 5"):
        unpack_kept(kept, codes)


@pytest.mark.parametrize(("n", "k"), [(24, 64), (33, 520), (1, 8)])
def test_few_token_layout(n: int, k: int) -> None:
    """Read back word by word, as the module describes it."""
    dense, kept, codes = layer(n, k)
    weight = pack_few_token(kept, codes)
    assert (weight.n, weight.k) == (n, k)
    rows, groups = weight.pairs.shape
    assert (rows % 32, groups % GROUPS, weight.shifts.shape) == (0, 0, (rows, groups // 8))
    found = np.zeros((rows, groups, 4), np.uint16)
    pairs = weight.pairs.numpy().view(np.uint32)
    shifts = weight.shifts.numpy().view(np.uint32)
    for group in range(groups):
        step, within = divmod(group, GROUPS)
        nibble, word = divmod(within, WORDS)
        move = shifts[:, step * WORDS + word] >> (4 * nibble) & 15
        at = np.arange(rows)
        found[at, group, 3 - (move >> 2)] = pairs[:, group] >> 16
        found[at, group, move & 3] |= (pairs[:, group] & 0xFFFF).astype(np.uint16)
    found = found.reshape(rows, -1)
    assert np.array_equal(found[:n, :k], dense.view(np.uint16))
    assert not found[n:].any()
    assert not found[:, k:].any()


def test_few_token_layout_is_nine_sixteenths() -> None:
    _, kept, codes = layer(64, 1024)
    assert pack_few_token(kept, codes).nbytes * 16 == 64 * 1024 * 2 * 9
    codes[0, 0] = 7
    with pytest.raises(EngineDirectoryError, match="7, expected 0 to 5"):
        pack_few_token(kept, codes)


@pytest.mark.vllm
def test_few_tokens_in_tritons_interpreter() -> None:
    # The interpreter is chosen when the kernel is defined, so it needs a process of its own.
    done = subprocess.run(
        [sys.executable, "-c", CHECK],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "agreed", done.stderr[-2000:]
