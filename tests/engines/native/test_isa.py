"""The choice of an instruction set: one rule, for the engine's kernels and for learning's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from engines.native import kernels

ISAS = kernels.supported_isas()
ALL = ("portable", "avx2", "avx512", "avx512_bf16")


def chosen(module: str, wish: str | None) -> str:
    """What a native module chooses under TWOFOUR_ISA, or `error: ` and why it chooses nothing."""
    code = f"from {module} import _native as n\ntry: print(n.isa())\n"
    code += "except ValueError as e: print('error:', e)"
    environment = {k: v for k, v in os.environ.items() if k != "TWOFOUR_ISA"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | ({} if wish is None else {"TWOFOUR_ISA": wish}),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize("wish", [None, "", *ALL, "sse9", "AVX2", " avx2"])
def test_the_engine_and_learning_choose_alike(wish: str | None) -> None:
    engine, learning = chosen("engines.native", wish), chosen("maskgen", wish)
    # Learning has no kernels of its own for avx512_bf16.
    assert learning == ("avx512" if engine == "avx512_bf16" else engine)
    if not wish:
        assert engine == ISAS[-1]
    elif wish in ISAS:
        assert engine == wish
    else:
        assert engine.startswith("error: TWOFOUR_ISA: ")
        assert wish in engine
        assert engine.endswith(", ".join(ISAS))
