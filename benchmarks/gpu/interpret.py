"""The few-token kernels in Triton's interpreter, in a process of its own.

Triton decides between interpreter and compiler when a kernel is defined, by TRITON_INTERPRET.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

CASES = ((16, 512, 1), (40, 1032, 1), (33, 520, 2), (16, 512, 16), (8, 64, 17), (1, 8, 3))
"""(n, k, tokens)"""


class InterpreterError(RuntimeError):
    """The kernels do not run there."""


def interpret() -> list[dict[str, Any]]:
    """Rows of `benchmarks.gpu.accuracy` from the interpreter.

    Raises:
        InterpreterError: the process failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.interpret"],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise InterpreterError(f"Triton's interpreter failed:\n{done.stderr[-2000:]}")
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def main() -> None:
    """Print the rows as JSON."""
    import torch

    from benchmarks.gpu.accuracy import compare, make_case, triton_kernels

    cases = (make_case(*case, torch.device("cpu")) for case in CASES)
    rows = [agreement.as_dict() for agreement in compare(triton_kernels(), cases)]
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
