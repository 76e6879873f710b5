"""Patch or copy: decided once, by a fixed rule, unless an option asks for a measurement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.cpu import mask_store, storage_measurement
from engines.cpu.build import build
from engines.cpu.describe import storage_of_directory
from engines.cpu.engine import CpuEngine
from engines.cpu.model import CpuModel
from engines.cpu.storage_measurement import MEMORY_LIMIT, crossing, measured_rule
from engines.cpu.storage_rule import FIXED_RULE, PATCH_LIMIT, StorageRule, chosen_rule, storage_of
from engines.directory.build import BuildRequest
from engines.directory.manifest import read_manifest
from engines.sampling import SamplingParams
from serving.names import ModelNames
from tests.engines.conftest import nearby_mask
from tests.engines.oracle import answers

GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True, logprobs=0)
PROMPT = list(range(5, 25))


def test_the_measured_limit_is_where_a_copy_saves_a_tenth(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storage_measurement, "_PROBES", (0.01, 0.03))
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
        fixed = chosen_rule(storage, 0.5)
        assert fixed is not None
        assert [fixed.storage(share) for share in (0.0, 1.0)] == [storage, storage]
    assert chosen_rule(None, None) is FIXED_RULE
    assert chosen_rule(None, "measure") is None


def test_what_was_recorded_counts_unless_an_option_says_otherwise() -> None:
    assert storage_of(0.5, "patch") == (
        "patch",
        "50.00% of groups changed; recorded when it was built",
    )
    assert storage_of(0.5, "patch", StorageRule(0.1, "option")) == (
        "copy",
        "50.00% of groups changed; option",
    )
    assert storage_of(0.5, None)[0] == "copy"  # of an older directory


@pytest.fixture
def near(tiny_model: Path, mask_of: Callable[..., Path], tmp_path: Path) -> dict[str, Path]:
    general = mask_of(tiny_model, leave_out="gate_proj")
    shares = {"one": 0.01, "ten": 0.1}
    made = {n: nearby_mask(general, tmp_path / f"{n}.safetensors", s) for n, s in shares.items()}
    return {"general": general} | made


def storages(engine: CpuEngine) -> dict[str, str]:
    return {mask.name: mask.storage for mask in engine.describe().masks}


def fingerprints(engine: CpuEngine) -> dict[str, str]:
    names = ModelNames(engine, None, 0)
    return {
        mask.name: names.resolve("tiny", mask.name).fingerprint for mask in engine._masks.infos()
    }


async def test_no_measurement_decides_unless_it_is_asked_for(
    near: dict[str, Path], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(model: CpuModel) -> StorageRule:
        raise AssertionError("an engine measured without being told to")

    monkeypatch.setattr(mask_store, "measured_rule", measured)
    build(BuildRequest(tiny_model, "tiny", near, tmp_path / "engine"))
    recorded = {mask.name: mask.storage for mask in read_manifest(tmp_path / "engine").masks}
    assert recorded == {"general": "base", "one": "patch", "ten": "copy"}
    engine = CpuEngine(tmp_path / "engine", kv_bytes=1 << 20)
    assert storages(engine) == recorded
    # What is loaded while it runs follows the same rule.
    for name in ("one", "ten"):
        info = await engine.load_mask(f"{name}-again", near[name])
        assert info.storage == recorded[name]
        assert info.reason.endswith(f"a patch up to {PATCH_LIMIT:.2%}")
    prints = fingerprints(engine)
    assert prints["one"] == prints["one-again"]
    await engine.close()


async def test_the_record_outlives_the_rule_that_made_it(
    near: dict[str, Path], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(BuildRequest(tiny_model, "tiny", near, tmp_path / "engine"))
    later = StorageRule(0.0, "of a later version")
    monkeypatch.setattr("engines.cpu.storage_rule.FIXED_RULE", later)
    engine = CpuEngine(tmp_path / "engine", kv_bytes=1 << 20)
    assert storages(engine) == {"general": "base", "one": "patch", "ten": "copy"}
    assert (await engine.load_mask("again", near["one"])).storage == "copy"
    await engine.close()


async def test_a_measurement_is_made_once_and_shows_in_the_fingerprint(
    near: dict[str, Path], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(BuildRequest(tiny_model, "tiny", {"general": near["general"]}, tmp_path / "engine"))
    prints = []
    for limit in (0.05, 0.0):
        rules = iter([StorageRule(limit, "measured first"), StorageRule(1.0, "measured again")])
        monkeypatch.setattr(mask_store, "measured_rule", lambda model, rules=rules: next(rules))
        engine = CpuEngine(tmp_path / "engine", kv_bytes=1 << 20, patch_limit="measure")
        infos = [await engine.load_mask(name, near[name]) for name in ("one", "ten")]
        again = await engine.load_mask("again", near["one"])
        prints.append(fingerprints(engine))
        await engine.close()
        small = "patch" if limit else "copy"
        assert [info.storage for info in (*infos, again)] == [small, "copy", small]
        assert all(info.reason.endswith("; measured first") for info in infos)
        assert replace(again, name="one") == infos[0]
    assert prints[0]["one"] != prints[1]["one"]  # other last bits
    for name in ("general", "ten"):  # kept the same way in both
        assert prints[0][name] == prints[1][name]


async def test_the_fingerprint_tells_what_changes_last_bits(
    near: dict[str, Path], tiny_model: Path, tmp_path: Path
) -> None:
    build(BuildRequest(tiny_model, "tiny", near, tmp_path / "engine"))
    found = {}
    for label, options in {
        "plain": {},
        "threads": {"threads": 2},  # change nothing
        "mapped": {"map_weights": True},
        "isa": {"isa": "portable"},
        "copies": {"mask_storage": "copy"},
    }.items():
        engine = CpuEngine(tmp_path / "engine", kv_bytes=1 << 20, **options)
        found[label] = fingerprints(engine)
        if label == "plain":
            await engine.unload_mask("ten")
            await engine.switch_base("one")
            found["switched"] = fingerprints(engine)
        await engine.close()
    assert found["plain"] == found["threads"] == found["mapped"]
    assert not set(found["plain"].values()) & set(found["isa"].values())
    assert found["plain"]["general"] == found["copies"]["general"]
    assert found["plain"]["one"] != found["copies"]["one"]
    # The old base is a patch to the new one now.
    assert found["switched"]["general"] != found["plain"]["general"]
    assert found["switched"]["one"] != found["plain"]["one"]


async def test_measuring_changes_nothing_that_is_served(
    near: dict[str, Path], tiny_model: Path, tmp_path: Path
) -> None:
    build(BuildRequest(tiny_model, "tiny", near, tmp_path / "engine"))
    options: dict[str, Any] = {"isa": "portable", "threads": 2, "patch_limit": "measure"}
    engine = CpuEngine(tmp_path / "engine", kv_bytes=1 << 20, **options)
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


def test_info_says_how_each_mask_is_kept(
    near: dict[str, Path], tiny_model: Path, tmp_path: Path
) -> None:
    build(BuildRequest(tiny_model, "tiny", near, tmp_path / "engine"))
    found = storage_of_directory(tmp_path / "engine")
    assert list(found) == ["one", "ten"]
    assert found["one"].startswith("patch: ")
    assert found["ten"].startswith("copy: ")
    assert all(text.endswith("; recorded when it was built") for text in found.values())
    build(BuildRequest(tiny_model, "tiny", {"general": near["general"]}, tmp_path / "single"))
    assert storage_of_directory(tmp_path / "single") == {}
