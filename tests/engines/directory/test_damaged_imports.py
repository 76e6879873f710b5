"""Checkpoints of other tools with seeded damage: one line, or a model and a mask that agree."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np

from engines.directory.checkpoint import Checkpoint
from engines.directory.import_checkpoint import import_checkpoint
from engines.errors import EngineDirectoryError
from maskgen.format.digests import base_digest
from maskgen.format.mask_file import read_mask
from maskgen.format.pattern import TWO_FOUR
from maskgen.format.placements import keep_from_codes
from tests.damage import check_error, damaged, memory_limit
from tests.engines.directory.test_import_checkpoint import (
    bitmask_model,
    flat_model,
    pruned,
    write_model,
)
from tests.tiny_model import make_tiny_llama


def test_damaged_checkpoints(tmp_path: Path) -> None:
    model = make_tiny_llama(
        tmp_path / "model", hidden_size=16, intermediate_size=24, num_hidden_layers=1
    )
    sources = [
        bitmask_model(model, tmp_path / "bitmask")[0],
        flat_model(model, tmp_path / "flat", everything=False)[0],
        flat_model(model, tmp_path / "everything", everything=True)[0],
        write_model(model, tmp_path / "dense", pruned(model)[0]),
    ]
    folder, out = tmp_path / "damaged", tmp_path / "out"
    outcomes: Counter[str] = Counter()
    for seed in range(250):
        rng = random.Random(seed)
        for old in (folder, out):
            shutil.rmtree(old, ignore_errors=True)
        out.mkdir()
        shutil.copytree(rng.choice(sources), folder)
        name = rng.choice(["model.safetensors"] * 3 + ["config.json"])
        (folder / name).write_bytes(damaged(folder / name, rng))
        try:
            with memory_limit(1 << 30):
                found = import_checkpoint(folder, out)
        except EngineDirectoryError as error:
            outcomes["refused"] += 1
            check_error(error, folder)
            continue
        outcomes["imported"] += 1
        mask = read_mask(found.mask)
        assert mask.base_digest == base_digest(found.model)
        written = Checkpoint(found.model)
        for layer, codes in mask.codes.items():
            dropped = written.tensor(f"{layer}.weight")[~keep_from_codes(codes, TWO_FOUR)]
            assert not np.count_nonzero(dropped.astype(np.float32))
    assert min(outcomes["refused"], outcomes["imported"]) > 20, outcomes
