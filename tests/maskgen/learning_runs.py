"""Small learning runs for the tests of this folder; also runnable, to be killed or to be a rank.

python learning_runs.py FOLDER METHOD SETTINGS-JSON
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from rich.console import Console

from maskgen.format.digests import base_digest
from maskgen.format.mask import Mask
from maskgen.format.mask_file import read_mask, write_mask
from maskgen.learn import LearnRequest, LearnResult, learn, parse_config
from maskgen.prune import PruneSettings, prune
from maskgen.texts.text_sets import TextSet

SMALL = {"steps": 6, "sequence_length": 16, "batch_size": 2, "log_every": 2, "checkpoint_every": 2}
TEXTS = TextSet.of(
    "numbers",
    [" ".join(f"{n} plus {n % 7} is {n + n % 7}." for n in range(s, 999, 5)) for s in range(5)],
)


def magnitude_prior(model_dir: Path) -> Mask:
    return prune(model_dir, None, PruneSettings("magnitude")).mask


def small_run(
    model_dir: Path, folder: Path, method: str, prior: Mask | None = None, **settings: object
) -> LearnResult:
    resume = bool(settings.pop("resume", False))
    dtype = str(settings.pop("dtype", "bf16"))
    config = parse_config(method, {**SMALL, **settings})
    request = LearnRequest(method, config, folder, resume=resume, dtype=dtype)
    chosen = prior or magnitude_prior(model_dir)
    return learn(model_dir, TEXTS, chosen, request, Console(quiet=True))


def log_lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in log_lines(folder)]


def main() -> None:
    root, method, settings = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    torch.set_num_threads(1)
    prior = read_mask(root / "prior.safetensors")
    assert prior.base_digest == base_digest(root / "model")
    folder = root / os.environ.get("RUN_NAME", "run")
    result = small_run(root / "model", folder, method, prior, **settings)
    if result.first:
        write_mask(folder / "mask.safetensors", result.mask)


if __name__ == "__main__":
    main()
