"""Without an extra, the commands that need it say which one, on one line."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from twofour.extras import EXTRA_OF

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "command",
    [
        "mask prune --model MODEL --out mask.safetensors --method magnitude",
        "build --model MODEL --target reference --out engine",
    ],
)
def test_the_extra_is_named(command: str, tmp_path: Path) -> None:
    (tmp_path / "MODEL").mkdir()
    (tmp_path / "MODEL" / "config.json").write_text("{}")
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "sys.modules.update(dict.fromkeys(('torch', 'transformers', 'vllm')));"
        "sys.argv[:] = ['twofour', *sys.argv[2:]];"
        "from twofour.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(ROOT), *command.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert "this needs torch, which is not installed: pip install 'twofour[train]'" in said
    assert "Traceback" not in said


def test_the_extras_bring_what_they_are_named_for() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for module, extra in EXTRA_OF.items():
        brought = {
            re.split(r"[^\w-]", line)[0].replace("-", "_")
            for line in extras["optional-dependencies"][extra]
        }
        parts = {name for name in brought if f"{name}_".startswith(f"{module}_")}
        assert parts, f"{extra} does not bring {module}"
