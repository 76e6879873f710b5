"""What idle threads of a process that runs the CPU engine do."""

from __future__ import annotations

import os


def shorten_spinning() -> None:
    """Let idle OpenMP threads sleep after some tens of microseconds instead of milliseconds.

    By default they spin after every step, in time that the event loop and other processes could
    use. libgomp reads this from the environment, once, when the first native module loads it: call
    this before, in a process of your own. A wait policy that the user set is left alone.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
