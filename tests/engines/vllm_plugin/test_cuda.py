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
from engines.vllm_plugin.cuda import unpack_kept
from engines.vllm_plugin.format import dense_values, kept_values, pack_nibbles

CHECK = """
import numpy as np, torch
from engines.vllm_plugin.cuda import unpack_kept
from engines.vllm_plugin.triton_kernel import few_tokens
rng = np.random.default_rng(0)
for n, k, tokens in [(16, 256, 1), (20, 264, 3), (1, 8, 2)]:
    codes = torch.from_numpy(
        (rng.integers(0, 6, (n, k // 8)) | rng.integers(0, 6, (n, k // 8)) << 4).astype(np.uint8))
    kept = torch.from_numpy(rng.standard_normal((n, k // 2)).astype(np.float32)).bfloat16()
    x = torch.from_numpy(rng.standard_normal((tokens, k)).astype(np.float32)).bfloat16()
    exact = x.double() @ unpack_kept(kept, codes).double().T
    torch.testing.assert_close(few_tokens(x, kept, codes).double(), exact, atol=1e-2, rtol=1e-2)
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
