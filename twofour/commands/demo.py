"""`twofour demo`: the main job on real weights, end to end."""

from __future__ import annotations


def demo() -> None:
    """Prune the real SmolLM2-135M, build an engine, serve it, and measure sparse beside dense."""
    raise ValueError("the demo is not part of this build")
