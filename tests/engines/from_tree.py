"""Runs a module or a script on the sources in the working directory.

    python tests/engines/from_tree.py pytest ARGUMENTS
    python tests/engines/from_tree.py tests/fuzz/fuzz_unpack.py ARGUMENTS

An editable install comes before PYTHONPATH: without this, what was built for a check would lie
there unused, and the checkout's own module would be tested.
"""

from __future__ import annotations

import runpy
import sys
from importlib import import_module
from pathlib import Path

_EDITABLE = "_editable_skbc_"


def main() -> None:
    """Take the editable install's finder away, check what is imported now, and run."""
    sys.meta_path[:] = [f for f in sys.meta_path if not type(f).__module__.startswith(_EDITABLE)]
    sys.path[0] = str(Path.cwd())
    try:
        native = Path(str(import_module("engines.native._native").__file__))
    except ModuleNotFoundError:
        native = Path()
    if not native.is_relative_to(Path.cwd()):
        raise SystemExit(f"error: the native module is not built in {Path.cwd()}")
    del sys.argv[0]
    if sys.argv[0].endswith(".py"):
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
