"""Only what the table accounts for is transformed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from maskgen.format.model_directory import WEIGHTS_FILE
from maskgen.transform.architectures import model_groups
from maskgen.transform.groups import TransformError
from tests.tiny_model import make_tiny_llama


def test_groups_of_a_decoder(tmp_path: Path) -> None:
    model = model_groups(make_tiny_llama(tmp_path, num_hidden_layers=1))
    assert model.architecture == "llama"
    assert {g.name: (g.blocks, g.size, g.rotatable) for g in model.groups.values()} == {
        "residual": (1, 64, False),
        "layers.0.mlp": (1, 128, False),
        "layers.0.value": (2, 16, True),
        "layers.0.query_heads": (2, 2, False),
        "layers.0.kv_heads": (1, 2, False),
    }
    readers = [place.tensor.split(".")[-2] for place in model.groups["residual"].readers]
    assert readers == ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "'gpt2' is not in the table of transforms, which has llama"),
        ({"model_type": ["llama"]}, "is not in the table"),
        ({"hidden_act": "softmax"}, "'softmax' is not known to act on every channel alone"),
        ({"intermediate_size": 120}, r"axis 1 has 120 channels"),
        ({"num_key_value_heads": 3}, "4 query heads do not divide among 3"),
        ({"num_attention_heads": 8, "head_dim": None}, r"axis \d has \d+ channels"),
        ({"num_hidden_layers": 3}, r"has no model\.layers\.2"),
        ({"num_hidden_layers": 10**9}, "1,000,000,000 decoder layers"),
        ({"hidden_size": True}, "hidden_size is True"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    make_tiny_llama(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(TransformError, match=message):
        model_groups(tmp_path)


def test_tensors_that_the_table_does_not_know_are_refused(tmp_path: Path) -> None:
    make_tiny_llama(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    tensors["model.layers.1.mlp.router.weight"] = tensors["model.norm.weight"].clone()
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    with pytest.raises(TransformError, match=r"does not know what model\.layers\.1\.mlp\.router"):
        model_groups(tmp_path)
