"""Every way in which a checkpoint loses its sparsity is named: layer, number, remedy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from engines.directory.checkpoint import Checkpoint
from engines.directory.decoder_config import read_decoder_config
from engines.errors import EngineDirectoryError
from engines.tensorrt_llm.checkpoint import write_checkpoint
from engines.tensorrt_llm.config import Mapping
from engines.tensorrt_llm.preflight import (
    PreflightError,
    check_checkpoint,
    dense_groups,
    sparse_targets,
)
from engines.tensorrt_llm.tensors import stage_targets
from tests.engines.tensorrt_llm.helpers import random_mask
from tests.tiny_model import make_tiny_llama

PROJ = "transformer.layers.1.mlp.proj.weight"


def _checkpoint(tmp_path: Path, mapping: Mapping | None = None, **settings: object) -> Path:
    model = make_tiny_llama(tmp_path / "hf", **settings)
    out = tmp_path / "ck"
    out.mkdir()
    write_checkpoint(Checkpoint(model), random_mask(model), out, mapping=mapping or Mapping())
    return out


def _edit(checkpoint: Path, rank: int, change: dict[str, object]) -> None:
    """Replace tensors of a rank; None removes them."""
    path = checkpoint / f"rank{rank}.safetensors"
    tensors = {**load_file(path), **change}
    save_file({name: t for name, t in tensors.items() if t is not None}, path)


def _edit_config(checkpoint: Path, **change: object) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def test_a_masked_model_passes_on_every_rank(tmp_path: Path) -> None:
    counts = check_checkpoint(_checkpoint(tmp_path, Mapping(2, 2)))
    assert (counts.sparse, counts.dense) == (4 * 5, 0)


def test_one_dense_group_is_found_on_its_rank(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path, Mapping(2))
    weight = load_file(checkpoint / "rank1.safetensors")[PROJ]
    weight[7, 20:24] = 1
    _edit(checkpoint, 1, {PROJ: weight})
    with pytest.raises(PreflightError) as raised:
        check_checkpoint(checkpoint)
    (problem,) = raised.value.problems
    assert problem.startswith(f"rank 1: {PROJ}: 1 of 1024 groups")
    assert "row 7, inputs 20 to 23" in problem
    assert "apply a 2:4 mask" in problem


def test_negative_zeros_count_as_zeros(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path)
    weight = load_file(checkpoint / "rank0.safetensors")[PROJ]
    weight[weight == 0] = -0.0
    _edit(checkpoint, 0, {PROJ: weight})
    assert check_checkpoint(checkpoint).sparse == 10


def test_inputs_must_stay_a_multiple_after_the_split(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path, Mapping(4), intermediate_size=96)
    with pytest.raises(PreflightError) as raised:
        check_checkpoint(checkpoint)
    assert len(raised.value.problems) == 2 * 4
    assert "mlp.proj.weight has 24 inputs at tp_size 4" in raised.value.problems[0]
    assert "no multiple of 16; use a smaller tp_size" in raised.value.problems[0]


def test_outputs_must_stay_a_multiple_after_the_split(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path, Mapping(4), intermediate_size=144)
    with pytest.raises(PreflightError) as raised:
        check_checkpoint(checkpoint)
    assert any("mlp.fc.weight has 36 outputs" in p for p in raised.value.problems)


@pytest.mark.parametrize("missing", ["attention.dense.weight", "mlp.fc.weight"])
def test_a_pruned_checkpoint_is_refused(tmp_path: Path, missing: str) -> None:
    checkpoint = _checkpoint(tmp_path)
    _edit(checkpoint, 0, {f"transformer.layers.0.{missing}": None})
    with pytest.raises(PreflightError, match=rf"layers\.0\.{missing} is missing.*trtllm-prune"):
        check_checkpoint(checkpoint)


def test_a_checkpoint_marked_as_pruned_is_refused(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path)
    _edit_config(checkpoint, is_pruned=True)
    with pytest.raises(PreflightError, match=r"is_pruned.*uninitialised memory.*--strip-plan"):
        check_checkpoint(checkpoint)


def test_a_missing_rank_is_named(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path, Mapping(2))
    (checkpoint / "rank1.safetensors").unlink()
    with pytest.raises(PreflightError, match=r"rank1\.safetensors is missing"):
        check_checkpoint(checkpoint)


def test_float32_is_refused(tmp_path: Path) -> None:
    checkpoint = _checkpoint(tmp_path)
    _edit_config(checkpoint, dtype="float32")
    with pytest.raises(PreflightError, match=r"'float32'.*bfloat16 or float16"):
        check_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "text", ["[]", "{", "[" * 100_000, '{"architecture": "LlamaForCausalLM"}', '{"mapping": {}}']
)
def test_other_directories_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(EngineDirectoryError, match=r"config\.json"):
        check_checkpoint(tmp_path)


def test_layers_that_become_one_matrix_are_masked_together(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "hf")
    decoder = read_decoder_config(model)
    targets = list(stage_targets(decoder, Mapping(), 0))
    mlp_only = random_mask(model, wanted=lambda layer: ".mlp." in layer)
    names = sparse_targets(targets, mlp_only.codes)
    assert names == {
        f"transformer.layers.{i}.mlp.{m}.weight" for i in (0, 1) for m in ("fc", "gate", "proj")
    }
    without_v = random_mask(model, wanted=lambda layer: not layer.endswith("v_proj"))
    with pytest.raises(PreflightError) as raised:
        sparse_targets(targets, without_v.codes)
    assert len(raised.value.problems) == 2
    assert "1 of the 3 layers" in raised.value.problems[0]
    assert "model.layers.0.self_attn.v_proj" in raised.value.problems[0]
    without_up = random_mask(model, wanted=lambda layer: not layer.endswith("up_proj"))
    with pytest.raises(PreflightError, match=r"1 of the 2 layers.*up_proj"):
        sparse_targets(targets, without_up.codes)


def test_layers_that_the_mask_leaves_dense_are_counted_not_refused(tmp_path: Path) -> None:
    model = make_tiny_llama(tmp_path / "hf")
    mask = random_mask(model, wanted=lambda layer: ".mlp." in layer)
    out = tmp_path / "ck"
    out.mkdir()
    write_checkpoint(Checkpoint(model), mask, out)
    decoder = read_decoder_config(model)
    sparse = sparse_targets(list(stage_targets(decoder, Mapping(), 0)), mask.codes)
    counts = check_checkpoint(out, [sparse])
    assert (counts.sparse, counts.dense) == (6, 4)
    with pytest.raises(PreflightError, match=r"attention\.qkv\.weight: \d+ of"):
        check_checkpoint(out)


@given(st.data())
def test_dense_groups_counts_exactly(data: st.DataObject) -> None:
    n, groups = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 6))
    cells = st.lists(st.sampled_from([0.0, -0.0, 1.5]), min_size=4, max_size=4)
    rows = data.draw(st.lists(cells, min_size=n * groups, max_size=n * groups))
    weight = np.array(rows, np.float16).reshape(n, groups * 4)
    expected = [
        (i // groups, i % groups) for i, row in enumerate(rows) if np.count_nonzero(row) > 2
    ]
    assert dense_groups(weight) == (len(expected), expected[0] if expected else (0, 0))
