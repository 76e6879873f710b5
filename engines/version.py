"""Which twofour this is."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache  # it is read from a file, and every request asks
def own_version() -> str:
    """`twofour` and its version."""
    try:
        return f"twofour {version('twofour')}"
    except PackageNotFoundError:  # running from a checkout that was never installed
        return "twofour"
