"""Patch or copy: the rule that chooses, and that it is asked once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engines.build import BuildRequest
from engines.cpu import describe, mask_store, storage_rule
from engines.cpu.build import build
from engines.cpu.describe import storage_of_directory
from engines.cpu.engine import CpuEngine
from engines.cpu.model import CpuModel
from engines.cpu.storage_rule import MEMORY_LIMIT, StorageRule, crossing, measured_rule
from engines.sampling import SamplingParams
from tests.engines.conftest import nearby_mask
from tests.engines.oracle import answers

GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True, logprobs=0)
PROMPT = list(range(5, 25))


def test_the_limit_is_where_a_copy_saves_a_tenth(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storage_rule, "_PROBES", (0.01, 0.03))
    # A patch takes 2 + 100 x share.
    assert crossing(copy=4.0 / 1.1, thin=3.0, thick=5.0) == pytest.approx(0.02)
    assert crossing(copy=12.0 / 1.1, thin=3.0, thick=5.0) == pytest.approx(0.1)
    assert crossing(copy=1.0, thin=3.0, thick=5.0) == 0.0
    assert crossing(copy=900.0, thin=3.0, thick=5.0) == MEMORY_LIMIT
    # A small model, or noise: no line to follow.
    assert crossing(copy=4.0, thin=3.0, thick=3.0) == MEMORY_LIMIT
    assert crossing(copy=2.0, thin=3.0, thick=2.5) == 0.0


def test_a_mask_at_the_limit_is_a_patch() -> None:
    rule = StorageRule(0.02, "said so")
    assert [rule.storage(share) for share in (0.0, 0.02, 0.021)] == ["patch", "patch", "copy"]
    assert rule.reason(0.005) == "0.50% of groups changed; said so"
    for storage in ("patch", "copy"):
        fixed = storage_rule.chosen_rule(storage, 0.5)  # type: ignore[arg-type]
        assert fixed is not None
        assert [fixed.storage(share) for share in (0.0, 1.0)] == [storage, storage]
    assert storage_rule.chosen_rule(None, None) is None


@pytest.fixture
def near(tiny_model: Path, mask_of: Callable[..., Path], tmp_path: Path) -> dict[str, Path]:
    general = mask_of(tiny_model, leave_out="gate_proj")
    shares = {"one": 0.01, "ten": 0.1}
    made = {n: nearby_mask(general, tmp_path / f"{n}.safetensors", s) for n, s in shares.items()}
    return {"general": general} | made


async def test_it_is_measured_once_and_kept(
    near: dict[str, Path], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = iter([StorageRule(0.05, "measured first"), StorageRule(0.0, "measured again")])
    monkeypatch.setattr(mask_store, "measured_rule", lambda model: next(rules))
    build(BuildRequest(tiny_model, "tiny", {"general": near["general"]}, tmp_path / "engine"))
    engine = CpuEngine(tmp_path / "engine", kv_bytes=1 << 20)
    infos = [await engine.load_mask(name, near[name]) for name in ("one", "ten")]
    again = await engine.load_mask("again", near["one"])
    await engine.close()
    assert [info.storage for info in (*infos, again)] == ["patch", "copy", "patch"]
    assert all(info.reason.endswith("; measured first") for info in infos)
    assert replace(again, name="one") == infos[0]


async def test_measuring_changes_nothing_that_is_served(
    near: dict[str, Path], tiny_model: Path, tmp_path: Path
) -> None:
    build(BuildRequest(tiny_model, "tiny", near, tmp_path / "engine"))
    engine = CpuEngine(tmp_path / "engine", kv_bytes=1 << 20, isa="portable", threads=2)
    expected = {name: await answers(engine, PROMPT, GREEDY, mask=name) for name in near}
    assert isinstance(engine._model, CpuModel)
    rule = measured_rule(engine._model)
    assert 0.0 <= rule.limit <= MEMORY_LIMIT
    assert f"a patch up to {rule.limit:.2%}, measured with portable on 2 threads" in rule.why
    for name, before in expected.items():
        assert await answers(engine, PROMPT, GREEDY, mask=name, salt="after") == before
    for info in engine.describe().masks[1:]:
        assert info.storage in ("patch", "copy")
        assert "measured with portable" in info.reason
    await engine.close()


def test_info_says_how_each_mask_would_be_kept(
    near: dict[str, Path], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = StorageRule(0.05, "measured here")
    monkeypatch.setattr(describe, "measured_rule", lambda model: rule)
    build(BuildRequest(tiny_model, "tiny", near, tmp_path / "engine"))
    found = storage_of_directory(tmp_path / "engine")
    assert list(found) == ["one", "ten"]
    assert found["one"].startswith("patch: ")
    assert found["ten"].startswith("copy: ")
    assert all(text.endswith("; measured here") for text in found.values())
    build(BuildRequest(tiny_model, "tiny", {"general": near["general"]}, tmp_path / "single"))
    assert storage_of_directory(tmp_path / "single") == {}
