"""Which share of a decoder a mask covers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from maskgen.format.coverage import (
    DenseWeight,
    coverage,
    decoder_position,
    decoder_weights,
    dense_lines,
    share,
    together,
)
from maskgen.format.mask import MaskFileError
from maskgen.format.mask_file import read_mask, write_mask
from tests.maskgen.masks import changed_mask, random_mask


def test_a_name_has_a_place_in_a_decoder_layer() -> None:
    assert decoder_position("model.layers.10.mlp.up_proj") == ("model.layers", 10, "mlp.up_proj")
    assert decoder_position("h.3.moe.experts.7.w1") == ("h", 3, "moe.experts.7.w1")
    assert decoder_position("lm_head") is None
    assert decoder_position("x." + "9" * 5000 + ".y") is None


def test_the_decoder_is_every_matrix_of_its_layers() -> None:
    shapes = {
        "model.layers.0.mlp.up_proj.weight": (8, 4),
        "model.layers.0.mlp.experts": (3, 8, 4),
        "model.layers.0.mlp.up_proj.bias": (8,),
        "model.layers.1.norm.weight": (4,),
        "vision.layers.0.mlp.up_proj.weight": (8, 4),
        "model.embed_tokens.weight": (99, 4),
        "lm_head.weight": (99, 4),
    }
    assert decoder_weights(shapes, ["model.layers.0.mlp.up_proj"]) == 32 + 96
    assert decoder_weights(shapes, ["lm_head"]) == 99 * 4


def test_coverage_is_written_and_read_back(tmp_path: Path) -> None:
    general = replace(random_mask(), decoder_weights=1000)
    write_mask(tmp_path / "general.safetensors", general)
    assert read_mask(tmp_path / "general.safetensors").decoder_weights == 1000
    domain = replace(changed_mask(general, 0.1), decoder_weights=1000)
    write_mask(tmp_path / "domain.safetensors", domain, general)
    assert read_mask(tmp_path / "domain.safetensors").decoder_weights == 1000
    assert coverage(general) == "masks 224 of the decoder's 1,000 weights (22.4 %)"
    assert "all those of the layers that it lists" in coverage(random_mask())
    assert general.digest == random_mask().digest


def test_a_decoder_is_no_smaller_than_its_masked_layers() -> None:
    with pytest.raises(MaskFileError, match="covers 224 weights of a decoder of 223"):
        replace(random_mask(), decoder_weights=223)


def test_dense_weights_of_one_kind_share_a_line() -> None:
    dense = {
        **{f"model.layers.{i}.mlp.up_proj": DenseWeight("excluded", 10) for i in (0, 1, 2, 5, 11)},
        "model.layers.3.mlp.up_proj": DenseWeight("its width", 10),
        "shared": DenseWeight("excluded", 40),
    }
    assert dense_lines(dense, 200) == [
        "model.layers.0-2,5,11.mlp.up_proj stays dense (25.0 % of the decoder's weights): excluded",
        "model.layers.3.mlp.up_proj stays dense (5.0 % of the decoder's weights): its width",
        "shared stays dense (20.0 % of the decoder's weights): excluded",
    ]
    assert together(["h.4.x"]) == "h.4.x"


def test_a_share_is_never_rounded_to_none_or_all() -> None:
    assert [share(part, 10_000) for part in (0, 1, 5000, 9999, 10_000)] == [
        "0 %", "0.1 %", "50.0 %", "99.9 %", "100 %",
    ]  # fmt: skip
