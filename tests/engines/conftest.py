"""Tiny models and masks shared by the engine tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.directory.checkpoint import Checkpoint
from engines.directory.manifest import identity_of
from engines.quantisation.options import ValueOptions
from maskgen.format.digests import base_digest
from maskgen.format.mask import Mask
from maskgen.format.mask_file import read_mask, write_mask
from maskgen.format.pattern import TWO_FOUR, Pattern
from maskgen.format.placements import project
from tests.tiny_model import make_tiny_llama

VALUES = {
    "bf16": ValueOptions(),
    "int8": ValueOptions(values="int8", block=32, head="bf16"),
    "int4": ValueOptions(values="int4"),
}
"""Types of values that suites run with: with and without minima, an int8 head, short blocks."""

FORMS = {name: (values, "2:4") for name, values in VALUES.items()} | {
    "int8-4:8": (VALUES["int8"], "4:8"),
    "int4-16:32": (VALUES["int4"], "16:32"),
}
"""The same with patterns of masks."""

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FUSED = ("qkv_proj", "gate_up_proj")
EXPERT = ("w1", "w2", "w3")


def random_mask(
    model: Path,
    path: Path,
    *,
    seed: int = 0,
    domain: str = "general",
    leave_out: str = "",
    pattern: str = "2:4",
) -> Path:
    """A random mask over the linear layers of `model`, without those that end in `leave_out`."""
    rng = np.random.default_rng(seed)
    checkpoint = Checkpoint(model)
    codes = {}
    masked = LINEARS + FUSED + EXPERT
    for name in checkpoint:
        layer = name.removesuffix(".weight")
        if not layer.endswith(masked) or (leave_out and layer.endswith(leave_out)):
            continue
        codes[layer] = project(rng.random(checkpoint.spec(name).shape), Pattern.parse(pattern))
    write_mask(
        path,
        Mask(
            codes=codes,
            base_digest=base_digest(model),
            method="random",
            domain=domain,
            calibration_digest=None,
            seed=seed,
            pattern=Pattern.parse(pattern),
        ),
    )
    return path


def nearby_mask(mask: Path, path: Path, share: float, seed: int = 1) -> Path:
    """`mask` with about `share` of its groups changed."""
    old = read_mask(mask)
    rng = np.random.default_rng(seed)
    codes = {}
    for name, values in old.codes.items():
        shift = rng.integers(1, 6, values.shape).astype(values.dtype)
        other = (values + shift) % values.dtype.type(old.pattern.placements)
        codes[name] = np.where(rng.random(values.shape) < share, other, values)
    write_mask(path, replace(old, codes=codes, domain="near"))
    return path


def edit_manifest(directory: Path, **changes: object) -> None:
    """Change fields of `engine.json` as if it had been written so."""
    path = directory / "engine.json"
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(fields | {"identity": identity_of(fields)}))


def as_version_1(directory: Path, *, sizes: bool = True) -> None:
    """Rewrite the manifest as the first format had it: without digests, and without storage.

    `sizes=False` leaves the list of files empty, so that none is compared.
    """
    path = directory / "engine.json"
    fields = json.loads(path.read_text())
    files = {name: record["bytes"] for name, record in fields["files"].items()}
    for mask in fields["masks"]:
        del mask["storage"]
    del fields["identity"]
    path.write_text(json.dumps(fields | {"format_version": 1, "files": files if sizes else {}}))


@pytest.fixture(scope="session")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Mixtral, whose experts are matrices on disk and none in transformers 5."""
    folder = tmp_path_factory.mktemp("tiny") / "mixtral"
    return make_tiny_llama(
        folder, architecture="mixtral", num_local_experts=2, tie_word_embeddings=False
    )


def mask_of_experts(model: Path, path: Path) -> Path:
    """A random mask of every expert of a Mixtral, as an importer of its files would list them."""
    return _mask_of(model, path, ".experts.")


def mask_of_router(model: Path, path: Path) -> Path:
    """A random mask of the routers of a Mixtral, which nothing makes and nothing takes."""
    return _mask_of(model, path, ".block_sparse_moe.gate.")


def _mask_of(model: Path, path: Path, part: str) -> Path:
    checkpoint = Checkpoint(model)
    rng = np.random.default_rng(0)
    codes = {
        name.removesuffix(".weight"): project(rng.random(checkpoint.spec(name).shape), TWO_FOUR)
        for name in checkpoint
        if part in name
    }
    write_mask(path, Mask(codes, base_digest(model), "random", "general", None, 0))
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="session")
def mask_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    folder = tmp_path_factory.mktemp("masks")

    def make(model: Path, seed: int = 0, **options: str) -> Path:
        label = "-".join([model.parent.name, model.name, str(seed), *options.values()])
        label = label.replace(":", "of")
        path = folder / f"{label}.safetensors"
        return path if path.exists() else random_mask(model, path, seed=seed, **options)

    return make
