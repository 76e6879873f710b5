"""Which twofour this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def own_version() -> str:
    """`twofour` and its version."""
    try:
        return f"twofour {version('twofour')}"
    except PackageNotFoundError:  # running from a checkout that was never installed
        return "twofour"
