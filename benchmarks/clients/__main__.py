"""`python -m benchmarks.clients`: runs all client scenarios, and writes docs/results/clients.json.

`make test-clients` sets up the environments of the clients first. The exit code is pytest's.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.clients.page import clients_page
from benchmarks.clients.report import ReportError, client_rows
from benchmarks.common.result_file import write_result

_SCENARIOS = "tests/clients"
# Pytest's exit codes for a run that went through: all passed, and some failed.
_WENT_THROUGH = (0, 1)


def main() -> int:
    """Run them, write down what came of each, and give the exit code."""
    if not Path(_SCENARIOS).is_dir():
        print(f"error: there is no {_SCENARIOS} here; run this in the root of a checkout")
        return 2
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # The newer form of the report has no properties of single tests.
        told = [f"--junitxml={report}", "-o", "junit_family=legacy"]
        command = [sys.executable, "-m", "pytest", "-m", "clients", _SCENARIOS, *told]
        code = subprocess.run(command, check=False).returncode
        if code not in _WENT_THROUGH:
            return code
        try:
            rows = client_rows(report)
        except ReportError as error:
            print(f"error: {error}")
            return 1
    print(f"wrote {write_result('clients', clients_page, rows, command='make test-clients')}")
    return code


if __name__ == "__main__":
    sys.exit(main())
