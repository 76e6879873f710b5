"""`twofour bench values` on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.values.page import values_table
from benchmarks.values.quality import arm_name
from tests.engines.conftest import random_mask
from tests.tiny_model import SAMPLE_TEXT, make_tiny_llama
from twofour.cli import app


def test_every_type_of_values_is_built_and_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_tiny_llama(tmp_path / "model", max_position_embeddings=2048)
    mask = random_mask(model, tmp_path / "mask.safetensors")
    (tmp_path / "text.txt").write_text(SAMPLE_TEXT * 40)
    monkeypatch.chdir(tmp_path)
    words = ["bench", "values", "--model", "model", "--mask", str(mask), "--windows", "1", "--json"]
    words += ["--wikitext2", "text.txt", "--c4", "text.txt"]

    def rows(*specs: str) -> list[dict[str, Any]]:
        flags = [part for spec in specs for part in ("--spec", spec)]
        done = CliRunner().invoke(app, [*words, *flags])
        assert done.exit_code == 0, (done.output, done.exception)
        found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])["rows"]
        return found

    assert len(rows("bf16")) == 2
    found = rows("bf16", "int8,block=32", "int4,minima=false,head=bf16")
    names = [(row["pattern"], row["values"], row["block"], row["head"]) for row in found]
    assert sorted(names) == [
        (pattern, *rest)
        for pattern in ("2:4", "dense")
        for rest in (("bf16", 0, "bf16"), ("int4", 32, "bf16"), ("int8", 32, "int8"))
    ]
    by_name = dict(zip(names, found, strict=True))
    for pattern in ("2:4", "dense"):
        plain, int8 = by_name[pattern, "bf16", 0, "bf16"], by_name[pattern, "int8", 32, "int8"]
        assert int8["wikitext2"] == pytest.approx(plain["wikitext2"], rel=0.05)
        assert int8["weights_mib"] <= plain["weights_mib"]
    assert "blocks of 32" in values_table(found)
    assert not list((tmp_path).glob("**/engine"))
    words += ["--single", f"model={mask}"]  # of the same model: what counts is the label
    again = {(row["pattern"], row["values"]): row["wikitext2"] for row in rows("bf16")}
    assert again["2:4 recovered", "bf16"] == again["2:4", "bf16"]
    done = CliRunner().invoke(app, [*words, "--gguf", "x.gguf"])
    assert "--gguf 'x.gguf' is not TYPE=FILE" in str(done.exception)
    done = CliRunner().invoke(app, [*words, "--spec", "int8,block"])
    assert "'block' is not OPTION=VALUE" in str(done.exception)
    done = CliRunner().invoke(app, [*words, "--spec", "int9"])
    assert "must be 'bf16', 'int8' or 'int4'" in str(done.exception)


def test_arms_are_named_by_pattern_and_values() -> None:
    names = [arm_name(pattern, "int4") for pattern in ("dense", "2:4", "16:32")]
    assert names == ["dense-int4", "sparse-int4", "bitmap-int4"]
