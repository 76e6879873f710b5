from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from maskgen.format.model_directory import ModelDirectoryError, end_token_ids, read_model_config


def write(directory: Path, **files: dict[str, Any]) -> Path:
    """JSON files, named without their suffix."""
    directory.mkdir(exist_ok=True)
    for name, value in files.items():
        (directory / f"{name}.json").write_text(json.dumps(value))
    return directory


SPARSE_24 = {"format": "sparse-24-bitmask", "sparsity_structure": "2:4"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "config_groups": {},
                    "sparsity_config": SPARSE_24,
                }
            },
            "twofour import",
        ),
        ({"compression_config": {"sparsity_config": SPARSE_24}}, "twofour import"),
        ({"sparsity_config": SPARSE_24}, "twofour import"),
        (
            {
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "config_groups": {"group_0": {}},
                }
            },
            r"is quantised \(compressed-tensors\)",
        ),
        ({"quantization_config": {"quant_method": "gptq"}}, r"is quantised \(gptq\)"),
        ({"quantization_config": {"quant_method": "twofour"}}, "engine directory that twofour"),
        ({"quantization_config": "gptq"}, "expected an object"),
        ({"transformers_weights": "other.safetensors"}, r"names other weights.*other\.safetensors"),
    ],
)
def test_encoded_weights_are_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    write(tmp_path, config=config)
    with pytest.raises(ModelDirectoryError, match=message):
        read_model_config(tmp_path)


def test_plain_weights_and_adapters(tmp_path: Path) -> None:
    plain = {"model_type": "llama", "quantization_config": None}
    write(tmp_path, config=plain)
    assert read_model_config(tmp_path) == plain
    write(tmp_path, adapter_config={"base_model_name_or_path": "other/model"})
    with pytest.raises(ModelDirectoryError, match="merge the adapter"):
        read_model_config(tmp_path)


@pytest.mark.parametrize(
    ("generation", "config", "tokenizer", "expected"),
    [
        ({"eos_token_id": 0}, {"eos_token_id": 0}, 2, (0, 2)),
        ({"eos_token_id": [5, 2]}, {"eos_token_id": 7}, 2, (5, 2)),
        ({}, {"eos_token_id": 7}, 2, (7, 2)),
        (None, {"eos_token_id": 7}, None, (7,)),
        (None, {"eos_token_id": -1}, 2, (2,)),
        (None, {"eos_token_id": None}, None, ()),
        ({"eos_token_id": []}, None, 3, (3,)),
        ({"eos_token_id": [0, 9]}, {"vocab_size": 9}, 9, (0,)),
    ],
)
def test_the_configuration_and_the_tokenizer_end_a_turn(
    tmp_path: Path, generation: Any, config: Any, tokenizer: int | None, expected: tuple[int, ...]
) -> None:
    files = {"generation_config": generation, "config": config}
    write(tmp_path, **{name: value for name, value in files.items() if value is not None})
    assert end_token_ids(tmp_path, tokenizer) == expected


@pytest.mark.parametrize("value", ["</s>", True, [1, "2"], 1.5, {}])
def test_an_end_token_that_is_no_id(tmp_path: Path, value: Any) -> None:
    write(tmp_path, generation_config={"eos_token_id": value})
    with pytest.raises(ModelDirectoryError, match=r"generation_config\.json: eos_token_id is"):
        end_token_ids(tmp_path, 2)
