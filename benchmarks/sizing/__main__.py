"""`python -m benchmarks.sizing DIR`: what replicas of an engine directory sustain."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.common.machine import BusyMachineError, require_quiet
from benchmarks.common.result_file import write_result
from benchmarks.sizing.page import sizing_page
from benchmarks.sizing.run import size
from loadtests.client_calibration import free_port


def main() -> int:
    """Measure, simulate, and write docs/results/sizing.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sizing", description=__doc__)
    parser.add_argument("directory", type=Path, help="engine directory of target cpu")
    parser.add_argument("--seconds", type=float, default=75.0, help="of each load")
    parser.add_argument("--force", action="store_true", help="measure on a busy machine, too")
    given = parser.parse_args()
    if not given.directory.is_dir():
        parser.error(f"{given.directory} is no folder")
    try:
        require_quiet(given.force)
    except BusyMachineError as error:
        print(f"error: {error}")
        return 1
    found = size(given.directory, free_port(), given.seconds, print)
    command = f"python -m benchmarks.sizing runs/bench/{given.directory.name}"
    path = write_result("sizing", sizing_page, found.pop("rows"), command=command, **found)
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
