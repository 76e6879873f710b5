"""Mask files: round trips, exact bytes, parents, digests, files that must be refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maskgen.format.digests import base_digest
from maskgen.format.mask import Mask, MaskFileError
from maskgen.format.mask_file import read_mask, read_metadata, write_mask
from maskgen.format.model_directory import ModelDirectoryError
from maskgen.format.pattern import TWO_FOUR, Pattern
from tests.maskgen.masks import SHAPES, changed_mask, header_end, random_mask, sha
from tests.maskgen.patterns import PATTERNS, any_pattern

GOLDEN = Path(__file__).parent / "golden"
SAME_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def rewrite(path: Path, **changes: str | None) -> None:
    """Change metadata of a mask file in place (None removes a key); tensors stay as they are."""
    data = path.read_bytes()
    end = header_end(path)
    header = json.loads(data[8:end])
    for key, value in changes.items():
        if value is None:
            del header["__metadata__"][key]
        else:
            header["__metadata__"][key] = value
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])


@SAME_FOLDER
@given(pattern=any_pattern, seed=st.integers(0, 2**32), share=st.floats(0, 1))
def test_files_of_every_pattern_round_trip(
    tmp_path: Path, pattern: Pattern, seed: int, share: float
) -> None:
    general = random_mask(seed, pattern=pattern)
    domain = changed_mask(general, share)
    write_mask(tmp_path / "general.safetensors", general)
    write_mask(tmp_path / "domain.safetensors", domain, parent=general)
    for name, mask in (("general", general), ("domain", domain)):
        path = tmp_path / f"{name}.safetensors"
        read = read_mask(path)
        assert (read.digest, read.pattern, read.shapes) == (mask.digest, pattern, mask.shapes)
        features = json.loads(read_metadata(path)["required_features"])
        assert ("pattern" in features) == (pattern != TWO_FOUR)
        assert ("difference" in features) == (name == "domain")


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_damaged_files_of_every_pattern_are_refused(tmp_path: Path, pattern: Pattern) -> None:
    general, path = random_mask(3, pattern=pattern), tmp_path / "m.safetensors"
    parent = tmp_path / "p.safetensors"
    write_mask(parent, general)
    rng = np.random.default_rng(0)
    for stored_against in (None, general):
        write_mask(path, changed_mask(general, 0.3), parent=stored_against)
        whole = path.read_bytes()
        start = header_end(path)
        for place in rng.integers(start, len(whole), 40).tolist():
            damaged = bytearray(whole)
            damaged[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            with pytest.raises(MaskFileError) as caught:
                read_mask(path, parent)
            assert "\n" not in str(caught.value)


@SAME_FOLDER
@given(
    shapes=st.dictionaries(
        st.from_regex(r"[a-z_]{1,9}(\.[0-9a-z_]{1,9}){0,3}", fullmatch=True),
        st.tuples(st.integers(1, 20), st.integers(1, 20).map(lambda groups: 4 * groups)),
        min_size=1,
        max_size=5,
    ),
    seed=st.integers(0, 2**32),
    share=st.floats(0, 1),
)
def test_files_round_trip_byte_for_byte(
    tmp_path: Path, shapes: dict[str, tuple[int, int]], seed: int, share: float
) -> None:
    general = random_mask(seed, shapes)
    domain = changed_mask(general, share)
    write_mask(tmp_path / "general.safetensors", general)
    write_mask(tmp_path / "domain.safetensors", domain, parent=general)
    for name, mask in (("general", general), ("domain", domain)):
        path = tmp_path / f"{name}.safetensors"
        read = read_mask(path)
        assert read.digest == mask.digest
        assert read.shapes == shapes
        assert all(np.array_equal(read.codes[key], mask.codes[key]) for key in shapes)
        parent = general if read.parent_digest else None
        write_mask(tmp_path / "again.safetensors", read, parent=parent)
        assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
        (tmp_path / "again.safetensors").unlink()


def test_every_field_comes_back(tmp_path: Path) -> None:
    mask = random_mask(7, method="sparsegpt", domain="français", calibration_digest=None)
    write_mask(tmp_path / "m.safetensors", mask)
    read = read_mask(tmp_path / "m.safetensors")
    for field in dataclasses.fields(Mask):
        if field.name != "codes":
            assert getattr(read, field.name) == getattr(mask, field.name)
    assert list(read.codes) == sorted(SHAPES)
    with pytest.raises(ValueError, match="read-only"):
        next(iter(read.codes.values()))[0] = 0


def test_golden_files_are_written_byte_for_byte(tmp_path: Path) -> None:
    general = random_mask(2024)
    write_mask(tmp_path / "general.safetensors", general)
    write_mask(tmp_path / "french.safetensors", changed_mask(general, 0.3), parent=general)
    for name in ("general", "french"):
        written = (tmp_path / f"{name}.safetensors").read_bytes()
        assert written == (GOLDEN / f"{name}.safetensors").read_bytes()
        read_mask(GOLDEN / f"{name}.safetensors")


def test_the_safetensors_package_reads_them_too(tmp_path: Path) -> None:
    mask = random_mask()
    write_mask(tmp_path / "m.safetensors", mask)
    with safetensors.safe_open(tmp_path / "m.safetensors", framework="numpy") as file:
        assert sorted(file.keys()) == sorted(SHAPES)
        assert file.metadata()["mask_digest"] == mask.digest


def test_a_real_sized_mask_takes_at_most_067_bits_per_weight(tmp_path: Path) -> None:
    shapes = {f"model.layers.{i}.mlp.down_proj": (576, 1536) for i in range(6)}
    mask = random_mask(0, shapes)
    write_mask(tmp_path / "m.safetensors", mask)
    assert (tmp_path / "m.safetensors").stat().st_size * 8 / mask.weights <= 0.67


def test_labels_do_not_change_the_digest_but_content_does() -> None:
    mask = random_mask(3)
    assert dataclasses.replace(mask, domain="other", seed=9).digest == mask.digest
    assert dataclasses.replace(mask, base_digest=sha("x")).digest != mask.digest
    name = min(mask.codes)
    codes = mask.codes[name].copy()
    codes[0, 0] = (codes[0, 0] + 1) % 6
    assert dataclasses.replace(mask, codes={**mask.codes, name: codes}).digest != mask.digest


def test_the_digest_is_the_documented_one() -> None:
    mask = random_mask(5)
    expected = hashlib.sha256(b"2:4\n" + sha("base").encode() + b"\n")
    for name in sorted(SHAPES):
        n, k = SHAPES[name]
        expected.update(f"{name}\n{n},{k}\n".encode() + mask.codes[name].tobytes())
    assert mask.digest == expected.hexdigest()


def test_a_parent_is_found_by_digest_or_named(tmp_path: Path) -> None:
    general, other = random_mask(1), random_mask(2)
    domain = changed_mask(general, 0.2)
    (tmp_path / "masks").mkdir()
    path = tmp_path / "masks" / "french.safetensors"
    write_mask(path, domain, parent=general)
    write_mask(tmp_path / "masks" / "a-different-one.safetensors", other)
    safetensors.numpy.save_file({"w": np.zeros(3)}, tmp_path / "masks" / "model.safetensors")
    with pytest.raises(MaskFileError, match=f"the mask {general.digest}, is not in"):
        read_mask(path)
    write_mask(tmp_path / "elsewhere.safetensors", general)
    assert read_mask(path, tmp_path / "elsewhere.safetensors").digest == domain.digest
    with pytest.raises(MaskFileError, match=f"its parent is {general.digest}, but"):
        read_mask(path, tmp_path / "masks" / "a-different-one.safetensors")
    write_mask(tmp_path / "masks" / "general.safetensors", general)
    read = read_mask(path)
    assert (read.digest, read.parent_digest) == (domain.digest, general.digest)


def test_a_parent_beside_the_mask_may_be_a_link_only_where_the_mask_is_one_too(
    tmp_path: Path,
) -> None:
    general = random_mask()
    blobs, masks = tmp_path / "blobs", tmp_path / "masks"
    blobs.mkdir()
    masks.mkdir()
    domain = changed_mask(general, 0.2)
    write_mask(blobs / "1", general)
    write_mask(blobs / "2", domain, parent=general)
    (masks / "general.safetensors").symlink_to(blobs / "1")
    (masks / "circle.safetensors").symlink_to("circle.safetensors")
    write_mask(masks / "own.safetensors", domain, parent=general)
    with pytest.raises(MaskFileError, match="is not in"):
        read_mask(masks / "own.safetensors")
    # As caches keep what they downloaded: links side by side to files side by side.
    (masks / "linked.safetensors").symlink_to(blobs / "2")
    assert read_mask(masks / "linked.safetensors").digest == domain.digest


def test_a_parent_must_fit(tmp_path: Path) -> None:
    general = random_mask(1)
    path = tmp_path / "m.safetensors"
    child = dataclasses.replace(changed_mask(general, 0.1), parent_digest=general.digest)
    with pytest.raises(MaskFileError, match=r"its parent .* is needed"):
        write_mask(path, child)
    with pytest.raises(MaskFileError, match="the mask names the parent"):
        write_mask(path, child, parent=random_mask(2))
    with pytest.raises(MaskFileError, match="has a parent itself"):
        write_mask(path, changed_mask(general, 0.2, seed=5), parent=child)
    with pytest.raises(MaskFileError, match="other layers or shapes"):
        write_mask(path, random_mask(1, {"a": (4, 4)}), parent=general)
    with pytest.raises(MaskFileError, match="base model"):
        write_mask(path, random_mask(1, base_digest=sha("x")), parent=general)
    with pytest.raises(MaskFileError, match="the mask is 4:8, its parent 2:4"):
        write_mask(path, random_mask(1, pattern=Pattern(4, 8)), parent=general)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pattern": Pattern(1, 4)}, "code 5 is no placement of 1:4"),
        ({"pattern": Pattern(8, 16)}, "codes are uint8, those of 8:16 uint16"),
        ({"base_digest": "abc"}, "base_digest 'abc'"),
        ({"calibration_digest": "A" * 64}, "calibration_digest"),
        ({"method": ""}, "method ''"),
        ({"domain": "two\nlines"}, "domain"),
        ({"seed": -1}, "seed -1"),
        ({"seed": True}, "seed True"),
        ({"codes": {}}, "at least one layer"),
        ({"codes": {"a b": np.zeros((1, 1), np.uint8)}}, "'a b' is not a module name"),
        ({"codes": {"a": np.zeros((1, 1), np.int64)}}, "layer a: codes are int64"),
        ({"codes": {"a": np.full((1, 1), 6, np.uint8)}}, "layer a: code 6"),
        ({"codes": {"a": np.zeros(4, np.uint8)}}, r"expected \(N, K/4\)"),
    ],
)
def test_malformed_masks_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(MaskFileError, match=message):
        dataclasses.replace(random_mask(), **fields)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "is not a mask file"),
        ({"format_version": "2"}, "format version '2' is not 1; update twofour"),
        ({"required_features": '["scales"]'}, r"requires \['scales'\]"),
        ({"required_features": "{}"}, "not a JSON list"),
        ({"required_features": '["difference"]'}, "exactly when"),
        ({"parent_digest": sha("p")}, "exactly when"),
        (
            {"pattern": "2:8"},
            "'pattern' exactly when its pattern is not 2:4; this one is 2:8",
        ),
        ({"pattern": "half"}, "'half' is not a pattern"),
        ({"pattern": "8:8"}, "8:8 is not a pattern"),
        ({"required_features": '["pattern"]'}, "requires 'pattern' exactly when"),
        ({"seed": "1e3"}, "seed '1e3'"),
        ({"seed": "99999999999999999999"}, "seed 99999999999999999999"),
        ({"base_digest": sha("x")}, "does not have the digest it states"),
        ({"base_digest": None}, "lacks base_digest"),
        ({"mask_digest": "0"}, "mask_digest"),
        ({"shapes": None}, "lacks shapes"),
        ({"shapes": "[]"}, "not a JSON object"),
        ({"shapes": "[" * 100_000}, "not JSON"),
        ({"shapes": '{"a":[4,4]}'}, "do not list the same layers"),
    ],
)
def test_bad_metadata_is_refused(
    tmp_path: Path, changes: dict[str, str | None], message: str
) -> None:
    path = tmp_path / "m.safetensors"
    write_mask(path, random_mask())
    rewrite(path, **changes)
    with pytest.raises(MaskFileError, match=message):
        read_mask(path)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([12, 6], "width 6 is not a multiple of 4"),
        ([1 << 40, 4], "packed bytes, but the file has"),
        ([1 << 40, 1 << 40], "no possible weight"),
        ([12, -8], "no possible weight"),
        ([12, 8.0], "not two integers"),
        ([12], "not two integers"),
    ],
)
def test_bad_shapes_are_refused_before_anything_is_allocated(
    tmp_path: Path, shape: list[object], message: str
) -> None:
    path = tmp_path / "m.safetensors"
    write_mask(path, random_mask())
    shapes = {**SHAPES, "model.layers.0.self_attn.q_proj": shape}
    rewrite(path, shapes=json.dumps(shapes))
    tracemalloc.start()
    with pytest.raises(MaskFileError, match=message):
        read_mask(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("kind", ["general", "domain"])
def test_every_truncation_is_refused(tmp_path: Path, kind: str) -> None:
    general = random_mask()
    write_mask(tmp_path / "general.safetensors", general)
    write_mask(tmp_path / "domain.safetensors", changed_mask(general, 0.5), parent=general)
    data = (tmp_path / f"{kind}.safetensors").read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in [*range(0, len(data), 5), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(MaskFileError):
            read_mask(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(MaskFileError, match="its header describes"):
        read_mask(path)


@SAME_FOLDER
@given(
    kind=st.sampled_from(["general", "domain"]),
    edits=st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_mutated_files_are_refused_or_keep_their_content(
    tmp_path: Path, kind: str, edits: list[tuple[int, int]]
) -> None:
    general = random_mask()
    domain = changed_mask(general, 0.5)
    write_mask(tmp_path / "general.safetensors", general)
    write_mask(tmp_path / "domain.safetensors", domain, parent=general)
    data = bytearray((tmp_path / f"{kind}.safetensors").read_bytes())
    for position, value in edits:
        data[position % len(data)] = value
    path = tmp_path / "mutated.safetensors"
    path.write_bytes(data)
    try:
        mask = read_mask(path)
    except MaskFileError:
        return
    finally:
        path.unlink()
    # Only labels that no digest covers (method, domain, seed, calibration) can still have changed.
    assert mask.digest == {"general": general, "domain": domain}[kind].digest


@SAME_FOLDER
@given(st.binary(max_size=200))
def test_random_bytes_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "random.safetensors"
    path.write_bytes(data)
    with pytest.raises(MaskFileError):
        read_mask(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "m.safetensors"
    write_mask(path, random_mask(1))
    before = path.read_bytes()
    calls = []

    def fail(*args: object, **kwargs: object) -> None:
        calls.append(args)
        raise OSError("disk full")

    monkeypatch.setattr("maskgen.format.container.np.ascontiguousarray", fail)
    with pytest.raises(OSError, match="disk full"):
        write_mask(path, random_mask(2))
    assert calls
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]
    assert path.read_bytes() == before


def test_metadata_can_be_read_alone(tmp_path: Path) -> None:
    write_mask(tmp_path / "m.safetensors", random_mask(4))
    metadata = read_metadata(tmp_path / "m.safetensors")
    assert (metadata["method"], metadata["seed"]) == ("wanda", "4")
    (tmp_path / "text").write_text("no mask")
    with pytest.raises(MaskFileError, match="is not a mask file"):
        read_metadata(tmp_path / "text")


TENSORS = {
    "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.weight": np.arange(4, dtype=np.int16),
    "c": np.array(1.5, dtype=np.float64),
}


def test_base_digest_is_the_documented_one_however_the_model_is_sharded(tmp_path: Path) -> None:
    expected = hashlib.sha256()
    for name, dtype, shape in (
        ("a.weight", "I16", "4"),
        ("b.weight", "F32", "2,3"),
        ("c", "F64", ""),
    ):
        expected.update(f"{name}\n{dtype}\n{shape}\n".encode() + TENSORS[name].tobytes())
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    whole.mkdir()
    safetensors.numpy.save_file(TENSORS, whole / "model.safetensors")
    assert base_digest(whole) == expected.hexdigest()
    sharded.mkdir()
    weight_map = {}
    for i, name in enumerate(TENSORS):
        shard = f"model-{i}.safetensors"
        safetensors.numpy.save_file({name: TENSORS[name]}, sharded / shard)
        weight_map[name] = shard
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert base_digest(sharded) == expected.hexdigest()
    index.write_text(json.dumps({"weight_map": {"c": "../whole/model.safetensors"}}))
    with pytest.raises(ValueError, match="outside its own directory"):
        base_digest(sharded)
    index.write_text("[]")
    with pytest.raises(ValueError, match="holds list"):
        base_digest(sharded)


def test_base_digest_of_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelDirectoryError, match="no model directory"):
        base_digest(tmp_path / "missing")
    with pytest.raises(ModelDirectoryError, match=r"neither model\.safetensors"):
        base_digest(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights at all")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        base_digest(tmp_path)
