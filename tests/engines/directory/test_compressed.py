"""The layouts of compressed-tensors, in the bytes that its releases wrote.

The tensors below are what the compressors of compressed-tensors 0.5.0 and 0.9.4 made of `WEIGHT`,
copied by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from engines.directory.checkpoint import Checkpoint
from engines.directory.compressed import DenseView
from engines.errors import EngineDirectoryError
from maskgen.format.pattern import TWO_FOUR
from maskgen.format.placements import keep_from_codes

BF16 = ml_dtypes.bfloat16
LAYER = "model.layers.0.mlp.up_proj"
WEIGHT = np.array(
    [
        [1, 2, 0, 0, 0, 0, 3, 4, 5, 0, 6, 0],
        [0, -1, 0, -2, -3, -4, 0, 0, 0, 0, -5, -6],
        [0, 0, 0.5, 1.5, 0, 2.5, 3.5, 0, 0, 4.5, 0, 5.5],
    ],
    BF16,
)
ROWS = [[1, 2, 3, 4, 5, 6], [-1, -2, -3, -4, -5, -6], [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]]
BITMASK = np.array([[195, 5], [58, 12], [108, 10]], np.uint8)
NORM = np.array([1, 0, 2], BF16)

SPARSE_24 = {  # 0.9.4
    f"{LAYER}.shape": np.array([[3], [12]], np.int64),
    f"{LAYER}.compressed": np.array(ROWS, BF16),
    f"{LAYER}.bitmask": BITMASK,
}
FLAT = {  # 0.9.4; 0.5.0 wrote the same with `.weight` in the names, and every other tensor so
    f"{LAYER}.shape": np.array([3, 12], np.int64),
    f"{LAYER}.compressed": np.array(ROWS, BF16).reshape(-1),
    f"{LAYER}.bitmask": BITMASK,
    f"{LAYER}.row_offsets": np.array([0, 6, 12], np.int64),
}
FLAT_EVERYTHING = {
    **{name.replace(LAYER, f"{LAYER}.weight"): value for name, value in FLAT.items()},
    "model.norm.weight.shape": np.array([3], np.int64),
    "model.norm.weight.compressed": np.array([1, 2], BF16),
    "model.norm.weight.bitmask": np.array([5], np.uint8),
    "model.norm.weight.row_offsets": np.array(0, np.int64),
    f"{LAYER}.bias.shape": np.array([3], np.int64),
    f"{LAYER}.bias.compressed": np.array([1, 2], np.float32),
    f"{LAYER}.bias.bitmask": np.array([5], np.uint8),
    f"{LAYER}.bias.row_offsets": np.array(0, np.int64),
}


def view(folder: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> DenseView:
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return DenseView(Checkpoint(folder, encoded=True))


@pytest.mark.parametrize(
    ("tensors", "kind"),
    [
        (SPARSE_24, "sparse-24-bitmask"),
        (FLAT, "sparse-bitmask"),
        (FLAT_EVERYTHING, "sparse-bitmask"),
        ({f"{LAYER}.weight": WEIGHT}, "dense"),
    ],
)
def test_every_layout_is_the_same_weight(tmp_path: Path, tensors: Any, kind: str) -> None:
    found = view(tmp_path, tensors)
    name = f"{LAYER}.weight"
    assert found.kind == kind
    assert (found.spec(name).dtype, found.spec(name).shape) == (BF16, (3, 12))
    assert np.array_equal(found.tensor(name), WEIGHT)
    codes = found.codes(name)
    if kind == "sparse-24-bitmask":
        assert codes is not None
        assert np.array_equal(keep_from_codes(codes, TWO_FOUR), WEIGHT != 0)
    else:
        assert codes is None
    if tensors is FLAT_EVERYTHING:
        assert set(found) == {name, f"{LAYER}.bias", "model.norm.weight"}
        assert found.tensor("model.norm.weight").tolist() == [1, 0, 2]
        assert found.tensor(f"{LAYER}.bias").dtype == np.float32
    else:
        assert set(found) == {name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row_offsets": np.array([0, 5, 12], np.int64)}, "does not agree with the bitmask"),
        ({"row_offsets": np.array([0], np.int64)}, "does not agree with the bitmask"),
        ({"compressed": np.array(ROWS, BF16).reshape(-1)[:-1]}, "17 values, its bitmask keeps 18"),
        ({"shape": np.array([3, 1 << 40], np.int64)}, "bitmask is"),
        ({"shape": np.array([3.0, 12.0])}, "has shape"),
        ({"shape": np.array([3, -12], np.int64)}, "has shape"),
        ({"bitmask": BITMASK | np.uint8(0x80)}, "beyond input 12"),
        ({"bitmask": None}, "without its .bitmask"),
        ({"compressed": None}, r"without .*compressed"),
        ({"weight": WEIGHT}, "twice"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    tensors = {**FLAT, **{f"{LAYER}.{name}": value for name, value in change.items()}}
    with pytest.raises(EngineDirectoryError, match=message):
        view(tmp_path, {n: v for n, v in tensors.items() if v is not None}).tensor(
            f"{LAYER}.weight"
        )
