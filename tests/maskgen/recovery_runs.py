"""Small recovery runs for the tests of this folder; also runnable, to be killed.

python recovery_runs.py FOLDER SETTINGS-JSON
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from rich.console import Console

from maskgen.format.mask import Mask
from maskgen.format.mask_file import read_mask, write_mask
from maskgen.recover import recover
from maskgen.recovery.config import RecoverConfig
from maskgen.recovery.request import RecoverRequest, RecoverResult
from maskgen.texts.text_sets import TextSet
from tests.maskgen.learning_runs import TEXTS

SMALL = {
    "steps": 6,
    "sequence_length": 16,
    "window_length": 16,
    "windows": 8,
    "learning_rate": 1e-3,
    "checkpoint_every": 2,
    "log_every": 2,
}


def small_recovery(
    model_dir: Path,
    folder: Path,
    mask: Mask | None,
    texts: TextSet = TEXTS,
    held_out: TextSet | None = None,
    resume: bool = False,
    dtype: str = "fp32",
    teacher: Path | None = None,
    **settings: object,
) -> RecoverResult:
    request = RecoverRequest(
        config=RecoverConfig.model_validate({**SMALL, **settings}),
        folder=folder / "run",
        checkpoint=folder / "model",
        resume=resume,
        dtype=dtype,
        held_out=held_out,
        held_out_every=2,
        held_out_windows=4,
        teacher=teacher,
    )
    return recover(model_dir, mask, texts, request, Console(quiet=True))


def main() -> None:
    root, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    folder = root / os.environ["RUN_NAME"]
    mask = read_mask(root / "mask.safetensors")
    result = small_recovery(root / "dense", folder, mask, held_out=TEXTS, **settings)
    assert result.mask is not None
    if result.first:
        write_mask(folder / "mask.safetensors", result.mask)


if __name__ == "__main__":
    main()
