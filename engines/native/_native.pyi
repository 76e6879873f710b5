"""The native module; the typed interfaces are the Python modules that wrap each submodule."""

from typing import Any

decoder: Any
kernels: Any
