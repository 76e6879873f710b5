"""`python -m benchmarks.gpu`: everything of twofour that wants a GPU, on a machine that has little.

Needs torch, Triton and numpy. Writes docs/results/gpu-compile.json and, with a GPU, gpu.json, each
with its page. Exit codes: 0 all is well, 1 something is wrong, 2 a package is missing, 3 there is
no CUDA GPU, so that the kernels were compiled and interpreted and nothing else was run.
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib.util import find_spec

GOOD, WRONG, INCOMPLETE, NO_GPU = 0, 1, 2, 3
_NEEDED = ("numpy", "torch", "triton")


def main() -> int:
    """Run what can be run here, and give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="about how long it may take")
    minutes = parser.parse_args().minutes
    if minutes <= 0:
        parser.error(f"--minutes is {minutes:g}, it must be above 0")
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        print(f"error: {', '.join(missing)} missing: pip install {' '.join(missing)}")
        return INCOMPLETE
    begin = time.monotonic()
    from benchmarks.gpu import checks

    good = checks.without_gpu(print)
    if not checks.gpu_found():
        print("no CUDA GPU: the kernels were compiled and interpreted, and nothing else was run")
        return NO_GPU if good else WRONG
    return GOOD if checks.with_gpu(begin + 60 * minutes, print) and good else WRONG


if __name__ == "__main__":
    sys.exit(main())
