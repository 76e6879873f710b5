"""The real server on a fake engine: `python -m tests.serving.run_fake DIR SETTINGS STEP_SECONDS`.

SETTINGS is JSON: `{"port": 0}`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from serving.config import ServerSettings
from serving.server import run
from tests.serving.fake_engine import FakeEngine

if __name__ == "__main__":
    directory = Path(sys.argv[1])
    settings = ServerSettings(directory=directory, **json.loads(sys.argv[2]))
    run(settings, FakeEngine(directory, float(sys.argv[3])))
