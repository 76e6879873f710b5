"""What a number was measured on. Needs nothing installed but Python (`benchmarks.gpu`)."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("twofour", "numpy", "torch", "transformers", "locust", "uvicorn", "fastapi")


def machine_class() -> str:
    """`avx512`, `avx2` or `portable`: which results compare in speed."""
    from engines.native.kernels import supported_isas

    return supported_isas()[-1].partition("_")[0]


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory and system."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "system": platform.platform(),
    }


def versions(packages: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
