"""Result files, the pages beside them, and the commands that they name."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.common.result_file import this_command, write_result


def test_results_have_the_common_fields_and_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_result(
        "x",
        lambda result: f"{result['rows'][0]['a']}\n",
        [{"a": 1}],
        command="twofour bench x",
        data_digests={"wiki": "00"},
        other_cpu_share=0.1,
    )
    result = json.loads(path.read_text())
    assert result["rows"] == [{"a": 1}]
    assert result["data_digests"] == {"wiki": "00"}
    assert result["other_cpu_share"] == 0.1
    assert result["machine"]["cores"] >= 1
    assert result["machine_class"] in ("avx512", "avx2", "portable")
    assert result["versions"]["python"]
    assert sorted(p.name for p in path.parent.iterdir()) == ["x.json", "x.md"]
    assert path.with_suffix(".md").read_text() == "1\n"


def test_commands_name_no_folders_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--dense", f"{tmp_path}/runs/dense", "--mask", "general=/private/x/g.safetensors"]
    words += ["--sparse=/a/b/sparse/", "--domain", "fr=/d/a.jsonl,/d/b.jsonl,3", "--lengths"]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/twofour", "bench", *words, "128/128,8/4"])
    assert this_command() == (
        "twofour bench --dense runs/dense --mask general=g.safetensors --sparse=sparse"
        " --domain fr=a.jsonl,b.jsonl,3 --lengths 128/128,8/4"
    )
