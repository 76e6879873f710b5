"""Building engine directories, and directories that must be refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from engines.cpu.build import build
from engines.cpu.engine import CpuEngine
from engines.cpu.matrix import Bf16Matrix
from engines.directory.build import BuildRequest
from engines.directory.checkpoint import Checkpoint
from engines.directory.manifest import read_manifest
from engines.directory.tensor_file import TensorFile, TensorSpec, TensorWriter
from engines.errors import EngineDirectoryError, EngineError, MaskError
from engines.native.layout import Layout, PackedWeights, unpack
from engines.registry import open_engine
from engines.text import TextCodec
from maskgen.format.mask_file import read_mask
from maskgen.format.pattern import TWO_FOUR
from maskgen.format.placements import keep_from_codes
from tests.engines.conftest import as_version_1, edit_manifest
from tests.tiny_model import make_tiny_llama


@pytest.fixture(scope="module")
def built(
    tiny_model: Path, mask_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("built") / "engine"
    build(BuildRequest(tiny_model, "tiny", {"general": mask_of(tiny_model)}, out))
    return out


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "engine"))


def test_weights_and_complement_hold_the_model(
    built: Path, tiny_model: Path, mask_of: Callable[..., Path]
) -> None:
    mask = read_mask(mask_of(tiny_model))
    checkpoint = Checkpoint(tiny_model)
    weights, complement = (
        TensorFile(built / name) for name in ("weights.safetensors", "complement.safetensors")
    )
    for layer, codes in mask.codes.items():
        dense = checkpoint.tensor(f"{layer}.weight")
        packed = PackedWeights(
            Layout.SPARSE24_BF16, *dense.shape, weights.tensor(f"{layer}.sparse24_bf16")
        )
        assert packed.data.ctypes.data % 64 == 0
        found, found_codes = unpack(packed)
        np.testing.assert_array_equal(found_codes, codes)
        kept = np.where(keep_from_codes(codes, TWO_FOUR), dense, np.zeros_like(dense))
        np.testing.assert_array_equal(found, kept)
        assert found_codes is not None
        Bf16Matrix(found).put_back(found_codes, complement.tensor(f"{layer}.dropped"))
        np.testing.assert_array_equal(found, dense)


def test_a_file_written_here_is_plain_safetensors(tmp_path: Path) -> None:
    arrays = {"a": np.arange(7, dtype=np.float32), "b": np.arange(64, dtype=np.uint8)}
    specs = {name: TensorSpec(a.dtype, a.shape) for name, a in arrays.items()}
    with TensorWriter(tmp_path / "x", specs, {"k": "v"}) as writer:
        for name, array in arrays.items():
            writer.write(name, array)
    for name, array in load_file(tmp_path / "x").items():
        np.testing.assert_array_equal(array, arrays[name])
    with (
        pytest.raises(ValueError, match="announced"),
        TensorWriter(tmp_path / "y", specs, {}) as writer,
    ):
        writer.write("a", arrays["b"])
    with pytest.raises(ValueError, match="lacks 2"), TensorWriter(tmp_path / "y", specs, {}):
        pass


def test_sharded_and_wider_checkpoints(
    tiny_model: Path, mask_of: Callable[..., Path], tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    shutil.copytree(tiny_model, tmp_path / "sharded")
    (tmp_path / "sharded" / "model.safetensors").unlink()
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 1
    mask = mask_of(tmp_path / "sharded")
    build(BuildRequest(tmp_path / "sharded", "t", {"g": mask}, tmp_path / "a"))
    build(BuildRequest(tiny_model, "t", {"g": mask_of(tiny_model)}, tmp_path / "b"))
    a, b = (TensorFile(tmp_path / d / "weights.safetensors") for d in "ab")
    for name in a:
        np.testing.assert_array_equal(a.tensor(name), b.tensor(name))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 3}, "update twofour"),
        ({"format_version": "1"}, "format_version"),
        ({"required_features": ["int4"]}, "int4"),
        ({"base_digest": "abc"}, "base_digest"),
        ({"default_mask": "nope"}, "nope"),
        ({"surprise": 1}, "surprise"),
        ({"masks": []}, "default_mask"),
        ({"format_version": True}, "format_version"),
        ({"required_features": 5}, "required_features"),
        ({"files": {"../../x": {"bytes": 1, "sha256": "0" * 64}}}, "is no file of an engine"),
        ({"files": {}}, "masks/general.safetensors of mask 'general' is not listed"),
        ({"files": {"config.json": 600}}, "FileRecord"),
        ({"files": {"config.json": {"bytes": 600}}}, "no sha256"),
        ({"format_version": 1}, "files"),
        ({"layout": {"id": "sparse24_bf16", "values": "bf16", "version": 999}}, "layout"),
        ({"target": "gpu"}, "target"),
    ],
)
def test_manifests_that_are_refused(copy: Path, changes: dict[str, object], message: str) -> None:
    edit_manifest(copy, **changes)
    with pytest.raises(EngineDirectoryError, match=message):
        open_engine(copy)


def test_a_manifest_that_is_not_as_it_was_written(copy: Path) -> None:
    path = copy / "engine.json"
    text = path.read_text()
    for old, new in (('"tiny"', '"tinx"'), ('"sealed": false', '"sealed": true')):
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(EngineDirectoryError, match="damaged, or edited by hand"):
            open_engine(copy, verify=False)
    path.write_text(json.dumps(json.loads(text)))  # the same fields, laid out otherwise
    read_manifest(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000], ids=range(5))
def test_manifests_that_are_no_json_objects(copy: Path, text: str) -> None:
    (copy / "engine.json").write_text(text)
    with pytest.raises(EngineDirectoryError, match=r"engine\.json"):
        open_engine(copy)


def test_files_of_another_size(copy: Path, tmp_path: Path) -> None:
    weights = copy / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(EngineDirectoryError, match="truncated"):
        open_engine(copy)
    as_version_1(copy, sizes=False)
    with pytest.raises(EngineDirectoryError, match="truncated"):
        open_engine(copy)
    weights.write_bytes(b"\xff" * 1000)
    with pytest.raises(EngineDirectoryError, match="not a safetensors"):
        open_engine(copy)
    weights.unlink()
    with pytest.raises(EngineDirectoryError, match="weights"):
        open_engine(copy)
    with pytest.raises(EngineDirectoryError, match="no engine directory"):
        open_engine(tmp_path)


def test_weights_with_impossible_codes(copy: Path) -> None:
    file = TensorFile(copy / "weights.safetensors")
    name = "model.layers.0.self_attn.q_proj.sparse24_bf16"
    start = file.tensor(name).ctypes.data - np.frombuffer(file._map, np.uint8).ctypes.data
    del file
    raw = bytearray((copy / "weights.safetensors").read_bytes())
    raw[start] = 0xFF
    (copy / "weights.safetensors").write_bytes(raw)
    with pytest.raises(EngineDirectoryError, match="is not the file that was built"):
        open_engine(copy)
    with pytest.raises(EngineDirectoryError, match="code"):
        open_engine(copy, verify=False)


def test_config_and_weights_that_disagree(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"intermediate_size": 160}))
    as_version_1(copy, sizes=False)
    with pytest.raises(EngineDirectoryError, match="gate_proj"):
        open_engine(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "longrope"),
        ({"num_key_value_heads": 3}, "multiple"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"intermediate_size": 256}, "gate_proj"),
        ({"num_hidden_layers": 3}, "model.layers.2"),
    ],
)
def test_models_that_cannot_be_built(
    tiny_model: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(EngineDirectoryError, match=message):
        build(BuildRequest(model, "tiny", {}, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_builds_that_are_refused(
    tiny_model: Path, mask_of: Callable[..., Path], tmp_path: Path
) -> None:
    mask = mask_of(tiny_model)
    out = tmp_path / "out"
    with pytest.raises(MaskError, match="cannot name a mask"):
        build(BuildRequest(tiny_model, "t", {"../x": mask}, out))
    with pytest.raises(EngineDirectoryError, match="describe"):
        build(BuildRequest(tiny_model, "a:b", {"g": mask}, out))
    with pytest.raises(EngineDirectoryError, match="no model directory"):
        build(BuildRequest(tmp_path / "nothing", "t", {"g": mask}, out))
    fewer = mask_of(tiny_model, leave_out="up_proj")
    with pytest.raises(MaskError, match="lists other layers"):
        build(BuildRequest(tiny_model, "t", {"g": mask, "h": fewer}, out))
    other = make_tiny_llama(tmp_path / "other", seed=3)
    with pytest.raises(MaskError, match="base digest"):
        build(BuildRequest(other, "t", {"g": mask}, out))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other"]
    out.mkdir()
    (out / "precious").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(EngineDirectoryError, match="exists"):
            build(BuildRequest(tiny_model, "t", {"g": mask}, out, overwrite=overwrite))
    assert (out / "precious").is_file()


async def test_an_engine_directory_is_replaced_whole(
    tiny_model: Path, mask_of: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    build(BuildRequest(tiny_model, "one", {}, out))
    assert read_manifest(out).layout is None
    build(BuildRequest(tiny_model, "two", {"g": mask_of(tiny_model)}, out, overwrite=True))
    engine = open_engine(out, kv_bytes=1 << 20)
    assert isinstance(engine, CpuEngine)
    info = engine.describe()
    assert (info.model, info.sparse_layers, info.eligible_layers) == ("two", 14, 14)
    await engine.close()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_model_without_a_tokenizer(tiny_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (model / "tokenizer.json").unlink()
    with pytest.raises(EngineError, match="tokenizer"):
        build(BuildRequest(model, "t", {}, tmp_path / "out"))


def test_the_end_tokens_of_configuration_and_tokenizer_both_count(
    tiny_model: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    # As of a base model that was tuned for chat: the tokenizer alone names the end of a turn.
    (model / "generation_config.json").write_text('{"eos_token_id": 0}')
    codec = TextCodec(model)
    assert codec.eos_token_ids == (0, codec.tokenizer.token_to_id("<|im_end|>"))
    (model / "generation_config.json").write_text('{"eos_token_id": "<|im_end|>"}')
    with pytest.raises(EngineDirectoryError, match="eos_token_id"):
        TextCodec(model)
