"""Switching the base in place: the bytes and the answers of an engine built for that mask."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.base import GenerationRequest
from engines.cpu.build import build
from engines.cpu.engine import CpuEngine
from engines.directory.build import BuildRequest
from engines.errors import MaskError, PatchError, UnknownMaskError
from engines.native.patch import inverse
from engines.quantisation.options import ValueOptions
from engines.sampling import SamplingParams
from tests.engines.conftest import FORMS, nearby_mask
from tests.engines.oracle import Answer, answers, many

GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, logprobs=0)
PROMPT = list(range(5, 45))
OPTIONS: dict[str, Any] = {"kv_bytes": 1 << 20, "invariant": True, "mask_storage": "patch"}


@pytest.fixture(scope="module", params=FORMS)
def form(request: pytest.FixtureRequest) -> tuple[ValueOptions, str]:
    """Types of values, and the pattern of all masks."""
    found: tuple[ValueOptions, str] = FORMS[request.param]
    return found


@pytest.fixture(scope="module")
def masks(
    form: tuple[ValueOptions, str],
    tiny_model: Path,
    mask_of: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("switch-masks")
    # One kind of layer stays dense, and one mask differs in every layer.
    general = mask_of(tiny_model, leave_out="gate_proj", pattern=form[1])
    made = {"general": general}
    for seed, (name, share) in enumerate({"near": 0.02, "far": 0.4, "next": 0.05}.items()):
        made[name] = nearby_mask(general, folder / f"{name}.safetensors", share, seed)
    return made


@pytest.fixture(scope="module")
def engine_of(
    form: tuple[ValueOptions, str],
    masks: dict[str, Path],
    tiny_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., CpuEngine]:
    folder = tmp_path_factory.mktemp("switch")

    def make(*names: str, **options: object) -> CpuEngine:
        directory = folder / "-".join(names)
        if not directory.exists():
            chosen = {name: masks[name] for name in names}
            build(BuildRequest(tiny_model, "tiny", chosen, directory, values=form[0]))
        return CpuEngine(directory, **OPTIONS | options)

    return make


def packed(engine: CpuEngine) -> list[np.ndarray]:
    return [weights.data for layer in engine._model.base for weights in layer]


def assert_same_bytes(one: CpuEngine, other: CpuEngine) -> None:
    for a, b in zip(packed(one), packed(other), strict=True):
        np.testing.assert_array_equal(a, b)


async def alone(engine: CpuEngine, mask: str | None, salt: str = "") -> Answer:
    (answer,) = await answers(engine, PROMPT, GREEDY, mask=mask, salt=salt)
    assert answer.error is None
    return answer


@pytest.mark.parametrize("map_weights", [False, True])
async def test_the_new_base_has_the_bytes_and_answers_of_an_engine_built_for_it(
    map_weights: bool, engine_of: Callable[..., CpuEngine]
) -> None:
    engine = engine_of("general", "near", "far", map_weights=map_weights)
    before = {name: await alone(engine, name) for name in ("general", "near", "far")}
    for name in ("near", "far", "near", "general"):
        info = await engine.switch_base(name)
        assert (info.name, info.storage, info.changed_share) == (name, "base", 0.0)
        others = {m.name: m for m in engine.describe().masks if m.name != name}
        assert {m.storage for m in others.values()} == {"patch"}
        fresh = engine_of(name)
        assert_same_bytes(engine, fresh)
        answer = await alone(engine, name)
        assert answer.cached_tokens == 0  # what it computed as a patch is not used
        assert answer == await alone(fresh, None)
        await fresh.close()
    # Back where it began, every mask gives the bits that it gave first.
    for name, expected in before.items():
        assert await alone(engine, name, salt="again") == expected
    await engine.close()


async def test_the_other_masks_go_on_as_patches_to_the_new_base(
    engine_of: Callable[..., CpuEngine], masks: dict[str, Path]
) -> None:
    engine = engine_of("general", "near", "far")
    await engine.switch_base("far")
    # The same masks, made from scratch for an engine whose base is `far`.
    fresh = engine_of("far", "general", "near")
    names: list[str | None] = ["general", "far", "near", None]
    expected = [await alone(fresh, name or "general") for name in names]
    assert [await alone(engine, name, salt="alone") for name in names] == expected
    mixed = await many(engine, [PROMPT] * 4, GREEDY, names)
    assert [a.token_ids for a in mixed] == [a.token_ids for a in expected]
    assert [a.logprobs for a in mixed] == [a.logprobs for a in expected]
    found = {m.name: m for m in engine.describe().masks}
    for mask in fresh.describe().masks:
        for field in ("digest", "storage", "changed_share", "resident_bytes"):
            assert getattr(found[mask.name], field) == getattr(mask, field)
    # And so does one that is loaded only now.
    loaded = [await e.load_mask("next", masks["next"]) for e in (engine, fresh)]
    assert loaded[0] == loaded[1]
    assert await alone(engine, "next") == await alone(fresh, "next")
    await engine.unload_mask("near")
    await engine.switch_base("next")
    last = engine_of("next")
    assert_same_bytes(engine, last)
    for one in (engine, fresh, last):
        await one.close()


async def test_a_copy_that_is_loaded_after_a_switch_has_the_right_weights(
    engine_of: Callable[..., CpuEngine], masks: dict[str, Path]
) -> None:
    engine = engine_of("general", mask_storage=None, patch_limit=0.1)
    await engine.load_mask("near", masks["near"])
    await engine.switch_base("near")
    assert (await engine.load_mask("far", masks["far"])).storage == "copy"
    fresh = engine_of("far")
    assert await alone(engine, "far") == await alone(fresh, None)
    with pytest.raises(MaskError, match=r"kept as copies \(far\): unload"):
        await engine.switch_base("general")
    await engine.unload_mask("far")
    await engine.switch_base("general")
    general = engine_of("general")
    assert_same_bytes(engine, general)
    for one in (engine, fresh, general):
        await one.close()


async def test_it_is_refused_while_a_sequence_uses_any_mask(
    engine_of: Callable[..., CpuEngine],
) -> None:
    engine = engine_of("general", "near")
    before = [data.copy() for data in packed(engine)]
    long = replace(GREEDY, max_tokens=400)
    for mask in ("general", "near"):
        stream = engine.generate(GenerationRequest("r", tuple(PROMPT), long, mask))
        await anext(stream)
        with pytest.raises(MaskError, match=f"'{mask}' by 1"):
            await engine.switch_base("near")
        await stream.aclose()
        while any(m.pinned for m in engine.describe().masks):
            await asyncio.sleep(0.01)
    for old, data in zip(before, packed(engine), strict=True):
        np.testing.assert_array_equal(data, old)
    with pytest.raises(UnknownMaskError, match="nope"):
        await engine.switch_base("nope")
    await engine.close()


async def test_the_base_cannot_be_unloaded_nor_patched_twice(
    engine_of: Callable[..., CpuEngine],
) -> None:
    engine = engine_of("general", "near")
    await engine.switch_base("near")
    assert (await engine.switch_base("near")).storage == "base"  # nothing to do
    with pytest.raises(MaskError, match="'near' is the base"):
        await engine.unload_mask("near")
    with pytest.raises(MaskError, match="default"):
        await engine.unload_mask("general")
    # A patch that does not start from what the weights hold changes nothing, in no layer.
    mask = engine._masks.resolve("general")
    assert mask.patches is not None
    last = next(i for i, p in enumerate(mask.patches[-1]) if p is not None)
    right = mask.patches[-1][last]
    assert right is not None
    mask.patches[-1][last] = inverse(right)
    before = [data.copy() for data in packed(engine)]
    with pytest.raises(PatchError, match="do not hold"):
        await engine.switch_base("general")
    for old, data in zip(before, packed(engine), strict=True):
        np.testing.assert_array_equal(data, old)
    mask.patches[-1][last] = right
    await engine.switch_base("general")
    general = engine_of("general")
    assert_same_bytes(engine, general)
    await general.close()
    await engine.unload_mask("near")
    await engine.close()
