"""The benchmark of mixed masks on a tiny model: every cell, and what it is made of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.engine.mix import crossovers, measure_mix, measured_rules
from benchmarks.engine.mix_plan import MixPlan, requests_per_mask, synthetic_mask
from engines.cpu.build import build
from engines.cpu.storage_rule import StorageRule
from engines.directory.build import BuildRequest, changed_share
from maskgen.format.mask_file import read_mask
from tests.engines.conftest import nearby_mask, random_mask
from tests.tiny_model import make_tiny_llama

PLAN = MixPlan(
    counts=(1, 2, 3),
    zipf_counts=(3,),
    shares=(0.02, 0.5),
    prompt_tokens=3,
    output_tokens=4,
    concurrency=4,
    repeats=2,
    cell_seconds=1e6,
    switches=2,
    rules=2,
    kv_mib=1,
)


@pytest.fixture(scope="module")
def mask(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mix")
    model = make_tiny_llama(folder / "model")
    file = random_mask(model, folder / "mask.safetensors")
    build(BuildRequest(model, "tiny", {"general": file}, folder / "engine"))
    return file


@pytest.mark.slow
def test_every_cell_has_a_row_of_every_mode(
    mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = {"near": nearby_mask(mask, tmp_path / "near.safetensors", 0.1)}
    said: list[str] = []
    monkeypatch.chdir(tmp_path)
    rule = StorageRule(0.2, "a patch up to 20%")
    monkeypatch.setattr("benchmarks.engine.mix.measured_rules", lambda directory, plan: [rule])
    path = measure_mix(mask.parent / "engine", PLAN, real, tmp_path, said.append)
    result = json.loads(path.read_text())
    assert result["rule"]["limit"] == 0.2
    assert result["plan"]["concurrency"] == 4
    assert len(result["crossovers"]) == 4
    assert "| 1 | all use one mask, not the base |" in path.with_suffix(".md").read_text()
    rows = result["rows"]
    assert [(r["masks"], r["active"], r["mix"], r["mode"]) for r in rows] == [
        (1, 1, "uniform", "base"),
        *(
            cell
            for _ in PLAN.shares
            for cell in (
                *((2, 1, "single", mode) for mode in ("patch", "copy", "switch")),
                *((2, 2, "uniform", mode) for mode in ("patch", "copy")),
                *((3, 3, mix, mode) for mix in ("uniform", "zipf") for mode in ("patch", "copy")),
            )
        ),
        *((2, 2, "uniform", mode) for mode in ("patch", "copy")),
    ]
    assert len(said) == 1 + len(rows)
    for row in rows:
        assert row["tokens_per_s"] > 0
        assert row["base_alone_tokens_per_s"] > 0
        assert row["resident_mib"] > 0
        assert sum(row["requests"]) == PLAN.concurrency
        assert len(row["tokens_per_s_all"]) == PLAN.repeats
        assert (row["switch_ms"] is None) == (row["mode"] != "switch")
        if row["mode"] in ("patch", "copy"):
            assert row["picked"] == ((row["mode"] == "patch") == (row["changed_share"] < 0.2))
    assert [row["changed_share"] for row in rows[1:]] == pytest.approx(
        [0.02] * 9 + [0.5] * 9 + [0.1] * 2, rel=0.2
    )
    patches = [row["masks_mib"] for row in rows if row["mode"] == "patch"]
    copies = [row["masks_mib"] for row in rows if row["mode"] == "copy"]
    assert patches[0] < copies[0] < patches[5]  # half the groups are more than a copy
    assert rows[-1]["names"] == ["general", "near"]


def test_the_rule_is_measured_as_often_as_asked(mask: Path) -> None:
    rules = measured_rules(mask.parent / "engine", PLAN)
    assert len(rules) == PLAN.rules
    assert rules[0].limit <= rules[1].limit


def test_synthetic_masks_come_from_their_seed(mask: Path) -> None:
    base = read_mask(mask)
    one, again, other = (synthetic_mask(base, 0.1, seed) for seed in (1, 1, 2))
    assert one.digest == again.digest != other.digest
    assert changed_share(one, base) == pytest.approx(0.1, rel=0.1)
    assert changed_share(synthetic_mask(base, 1.0, 3), base) == 1.0
    for name, codes in one.codes.items():
        new = codes[codes != base.codes[name]]
        assert set(np.unique(new)) == set(range(6))


def test_requests_are_shared_out() -> None:
    assert requests_per_mask("uniform", 4, 16) == [4, 4, 4, 4]
    assert requests_per_mask("uniform", 3, 16) == [6, 5, 5]
    assert requests_per_mask("zipf", 2, 16) == [11, 5]
    found = requests_per_mask("zipf", 16, 16)
    assert sum(found) == 16
    assert found == sorted(found, reverse=True)
    assert found[0] == 5


def test_crossovers_are_interpolated_where_the_faster_mode_changes() -> None:
    def rows(masks: int, rates: list[tuple[float, float, float]]) -> list[dict[str, object]]:
        cell = {"masks": masks, "active": masks, "mix": "uniform"}
        return [
            cell | {"changed_share": share, "mode": mode, "tokens_per_s": rate}
            for share, patch, copy in rates
            for mode, rate in (("patch", patch), ("copy", copy))
        ]

    measured = [
        *rows(2, [(0.1, 1 / 2.0, 1 / 3.0), (0.3, 1 / 6.0, 1 / 3.0)]),  # seconds: 2, 6 against 3
        *rows(4, [(0.1, 50.0, 40.0), (0.3, 45.0, 40.0)]),
        *rows(8, [(0.1, 30.0, 40.0), (0.3, 20.0, 40.0)]),
    ]
    found = {cell["masks"]: (cell["crossover"], cell["faster"]) for cell in crossovers(measured)}
    assert found == {2: (0.15, None), 4: (None, "patch"), 8: (None, "copy")}
    assert crossovers(measured[:1])[0]["crossover"] is None


def test_plans_that_cannot_be_measured() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        MixPlan(counts=(0, 2))
    with pytest.raises(ValueError, match=r"above 0 and at most 1, got \(3.0,\)"):
        MixPlan(shares=(3.0,))
