"""The example of docs/python-api.md runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engines.cpu.build import build
from engines.directory.build import BuildRequest
from tests.doc_blocks import fenced
from tests.engines.conftest import random_mask
from tests.tiny_model import make_tiny_llama


def test_the_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_tiny_llama(tmp_path / "model")
    masks = {
        name: random_mask(model, tmp_path / f"{name}.safetensors", seed=seed)
        for seed, name in enumerate(("general", "python"))
    }
    build(BuildRequest(model, "tiny", masks, tmp_path / "engine"))
    monkeypatch.chdir(tmp_path)
    (example,) = fenced("python-api.md", "python")
    exec(compile(example, "docs/python-api.md", "exec"), {})
    general, python, answer = capsys.readouterr().out.split("\n", 2)
    shown = r"""(['"]).*\1 (length|stop) -[\d.]+"""
    assert re.fullmatch(f"general {shown}", general)
    assert re.fullmatch(f"python {shown}", python)
    assert answer.endswith("\n")
