"""GGUF files that are damaged, or hold what no model directory can say: one clear line each."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from maskgen.gguf_model.convert import write_model_directory
from maskgen.gguf_model.header import GgufError, read_gguf_header
from tests.damage import check_error, damaged, memory_limit
from tests.maskgen.gguf_model.tiny_gguf import make_tiny, write_tiny_gguf

HEAD_SIZES = ("attention__key_length", "attention__value_length", "rope__dimension_count")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("llama", tmp_path_factory.mktemp("gguf") / "model", num_hidden_layers=1)


@pytest.fixture(scope="module")
def file(model: Path) -> Path:
    return write_tiny_gguf(model, model.parent / "model.gguf")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"general__architecture": "mamba"}, "architecture 'mamba', which is not supported"),
        ({"general__type": "adapter"}, "'adapter' and no model"),
        ({"without": ["blk.0.ffn_up.weight"]}, "lacks 1 tensors, such as blk.0.ffn_up.weight"),
        ({"without": ["token_embd.weight"]}, "lacks the tensor token_embd.weight"),
        ({"without": ["llama.block_count"]}, "llama.block_count is None"),
        ({"tensors": {"blk.0.extra.weight": np.ones((2, 2), np.float32)}}, "blk.0.extra.weight"),
        ({"llama__attention__mystery": 3}, "llama.attention.mystery .3. is not understood"),
        ({"llama__expert_count": 8}, "expert_count 8 is not supported"),
        ({"llama__rope__dimension_count": 8}, "rope.dimension_count 8"),
        ({"llama__rope__scaling__type": "longrope"}, "'longrope'"),
        ({"tensors": {"rope_freqs.weight": np.full(8, 3, np.float32)}}, "rope_freqs.weight"),
        ({"split__count": 3}, "one part of 3"),
        (
            {f"llama__{key}": 24 for key in HEAD_SIZES},
            "64 outputs, no multiple of the head's 24",
        ),
        ({"llama__attention__layer_norm_rms_epsilon": float("nan")}, "epsilon is nan"),
    ],
)
def test_what_cannot_be_said_is_refused(
    options: dict[str, Any], message: str, model: Path, tmp_path: Path
) -> None:
    path = write_tiny_gguf(model, tmp_path / "model.gguf", **options)
    with pytest.raises(GgufError, match=message) as error:
        write_model_directory(path, tmp_path / "out")
    assert "\n" not in str(error.value)


def test_unknown_types_are_named(file: Path, tmp_path: Path) -> None:
    name = b"blk.0.ffn_up.weight"
    data = bytearray(file.read_bytes())
    place = data.index(name) + len(name) + 4 + 16
    for code, message in ((9999, "type 9999"), (int(gguf.GGMLQuantizationType.I8), "type I8")):
        data[place : place + 4] = struct.pack("<I", code)
        (tmp_path / "x.gguf").write_bytes(data)
        with pytest.raises(GgufError, match=f"{name.decode()}.* has the {message}"):
            read_gguf_header(tmp_path / "x.gguf")


@pytest.mark.parametrize("share", [0, 0.0001, 0.01, 0.2, 0.5, 0.999])
def test_truncated_files_are_refused(share: float, file: Path, tmp_path: Path) -> None:
    data = file.read_bytes()
    (tmp_path / "x.gguf").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(GgufError, match=r"x\.gguf") as error:
        read_gguf_header(tmp_path / "x.gguf")
    check_error(error.value, tmp_path)


def test_random_damage_ends_in_one_line(file: Path, tmp_path: Path) -> None:
    rng, path, refused = random.Random(0), tmp_path / "x.gguf", 0
    head = file.read_bytes()[:12_000]
    for _ in range(300):
        (tmp_path / "head.bin").write_bytes(head)
        changed = damaged(tmp_path / "head.bin", rng)
        path.write_bytes(changed + file.read_bytes()[len(head) :])
        try:
            with memory_limit(1 << 29):
                read_gguf_header(path)
        except GgufError as error:
            check_error(error, path)
            refused += 1
    assert refused > 30
