"""The embedded CPU engine."""

import os

# libgomp reads this once, when the native module loads it. Its default lets idle threads spin for
# milliseconds after every step: time that the server's event loop and other processes could use.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
