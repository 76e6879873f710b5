"""Runs a module of this package with the Python of another environment.

    python -P foreign_python.py benchmarks.engine.vllm_worker ARGUMENTS

That environment is shown this package and not the folder around it, which may hold everything that
is installed here. The module may import the standard library, what its environment has, and
`waves` and `worker_protocol` of this folder. Its `main()` gets the arguments.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def foreign_command(python: Path, module: str, *arguments: str) -> list[str]:
    """The command that runs `module` with `python`."""
    # -P: modules of this folder must not stand in for the standard library's.
    return [str(python), "-P", __file__, module, *arguments]


def main() -> None:
    """Import the package from where this file lies, and run the module that is named."""
    init = Path(__file__).resolve().parents[1] / "__init__.py"
    spec = importlib.util.spec_from_file_location("benchmarks", init)
    if spec is None or spec.loader is None:
        raise ImportError(f"{init} is no package")
    package = importlib.util.module_from_spec(spec)
    sys.modules["benchmarks"] = package
    spec.loader.exec_module(package)
    importlib.import_module(sys.argv[1]).main(*sys.argv[2:])


if __name__ == "__main__":
    main()
