"""Fused matrices are masked and packed as the linear layers that they hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engines.cpu.build import build
from engines.cpu.describe import kernels_of_directory
from engines.cpu.engine import CpuEngine
from engines.directory.build import BuildRequest
from engines.directory.decoder_config import read_decoder_config
from engines.errors import EngineDirectoryError
from engines.sampling import SamplingParams
from maskgen.format.mask_file import read_mask
from tests.engines.conftest import VALUES, nearby_mask
from tests.engines.oracle import Oracle, check_greedy, many
from tests.tiny_model import make_tiny_llama

# As in test_equal_answers.py.
MARGIN, TOLERANCE = 0.5, 0.5
GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True, logprobs=0)


@pytest.fixture(scope="module")
def phi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fused")
    return make_tiny_llama(folder / "phi3", architecture="phi3", hidden_size=96, head_dim=32)


def test_parts_are_the_rows_of_the_matrix(phi: Path, mask_of: Callable[..., Path]) -> None:
    config, mask = read_decoder_config(phi), read_mask(mask_of(phi))
    assert set(mask.codes) == set(config.linear_shapes())
    assert mask.shapes == config.linear_shapes()
    parts = config.codes_of_parts(mask)
    widths = {name: (codes.shape[0], 4 * codes.shape[1]) for name, codes in parts.items()}
    assert widths == config.part_shapes()
    for fused, names in (("self_attn.qkv_proj", "qkv"), ("mlp.gate_up_proj", ("gate", "up"))):
        block = fused.split(".")[0]
        together = [parts[f"model.layers.1.{block}.{name}_proj"] for name in names]
        whole = mask.codes[f"model.layers.1.{fused}"]
        np.testing.assert_array_equal(np.concatenate(together), whole)


@pytest.mark.parametrize("values", VALUES)
async def test_masks_are_loaded_and_switched(
    values: str, phi: Path, mask_of: Callable[..., Path], tmp_path: Path
) -> None:
    base, far = mask_of(phi), mask_of(phi, seed=1)
    near = nearby_mask(base, tmp_path / "near.safetensors", 0.01)
    options = VALUES[values]
    build(BuildRequest(phi, "tiny", {"base": base}, tmp_path / "engine", values=options))
    engine = CpuEngine(tmp_path / "engine", kv_bytes=8 << 20)
    await engine.load_mask("near", near)
    await engine.load_mask("far", far)
    assert [mask.storage for mask in engine.describe().masks] == ["base", "patch", "copy"]
    prompts = [list(range(5, 30)), list(range(40, 45)), list(range(60, 90))]
    found = await many(engine, prompts, GREEDY, ["base", "near", "far"])
    if values == "bf16":
        for prompt, answer, mask in zip(prompts, found, (base, near, far), strict=True):
            check_greedy(Oracle(phi, mask), prompt, answer, margin=MARGIN, tolerance=TOLERANCE)
    await engine.unload_mask("far")
    await engine.switch_base("near")
    build(BuildRequest(phi, "tiny", {"near": near}, tmp_path / "other", values=options))
    other = CpuEngine(tmp_path / "other", kv_bytes=8 << 20)
    for mine, theirs in zip(engine._model.base, other._model.base, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(a.data, b.data)
    await engine.close()
    await other.close()


def test_layers_that_a_mask_leaves_out_are_dense(
    phi: Path, mask_of: Callable[..., Path], tmp_path: Path
) -> None:
    mask = mask_of(phi, leave_out="qkv_proj")
    build(BuildRequest(phi, "tiny", {"base": mask}, tmp_path / "engine"))
    kernels = kernels_of_directory(tmp_path / "engine")
    assert "not listed" in kernels["128 x 96"]
    assert "not listed" not in kernels["96 x 128"]


def test_longropes_reach_as_far_as_their_short_factors(phi: Path, tmp_path: Path) -> None:
    factors = {"long_factor": [2.0] * 16, "short_factor": [1.0] * 16}
    model = make_tiny_llama(
        tmp_path / "model",
        architecture="phi3",
        hidden_size=128,
        original_max_position_embeddings=64,
        rope_scaling={"type": "longrope", **factors},
    )
    notes: list[str] = []
    build(BuildRequest(model, "tiny", {}, tmp_path / "engine", note=notes.append))
    assert "sequences of up to 64 of 512 positions" in notes[-1]
    assert read_decoder_config(tmp_path / "engine").context == 64


def test_other_ropes_of_phi_are_refused(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "model", architecture="phi3")
    config = model / "config.json"
    config.write_text(config.read_text().replace('"rope_type": "default"', '"rope_type": "linear"'))
    with pytest.raises(EngineDirectoryError, match="'linear' is not supported for phi3, only"):
        read_decoder_config(model)
