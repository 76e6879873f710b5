"""Small runs for the tests of this folder; also runnable, to be killed.

python structure_runs.py FOLDER METHOD SETTINGS-JSON
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from maskgen.structure.config import structure_config
from maskgen.structure.file import write_structure
from maskgen.structure.latency import LayerLatency
from maskgen.structure.learn import StructureRequest, StructureResult, learn_structure
from maskgen.texts.text_sets import TextSet
from tests.tiny_model import SAMPLE_TEXT, make_tiny_llama

TEXT = TextSet.of("sample", [SAMPLE_TEXT] * 8)
SMALL = {
    "steps": 40,
    "sequence_length": 32,
    "batch_size": 2,
    "gate_rate": 0.05,
    "held_out_windows": 3,
    "held_out_every": 10,
    "checkpoint_every": 5,
}


def model_with_idle_units(directory: Path) -> Path:
    """A model that does without every other channel, although their weights are the largest."""
    make_tiny_llama(directory)
    tensors = load_file(directory / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith(("gate_proj.weight", "up_proj.weight")):
            tensor[::2] *= 3
        if name.endswith("down_proj.weight"):
            tensor[:, ::2] = 0
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


def choose(
    model: Path,
    folder: Path,
    method: str,
    ratio: float = 0.7,
    heads: int | None = 2,
    resume: bool = False,
    texts: TextSet = TEXT,
    latency: LayerLatency | None = None,
    **settings: object,
) -> StructureResult:
    learned = method in ("grasp", "maskprune")
    config = structure_config(method, {**(SMALL if learned else {}), **settings})
    request = StructureRequest(
        method,
        config,
        ratio,
        key_value_heads=heads,
        multiple=8,
        latency=latency,
        windows=4,
        length=32,
        dtype="fp32",
        folder=folder,
        resume=resume,
    )
    return learn_structure(model, texts, request)


def main() -> None:
    root, method, settings = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    torch.set_num_threads(1)
    folder = root / os.environ["RUN_NAME"]
    result = choose(root / "model", folder, method, **settings)
    write_structure(folder / "structure.safetensors", result.structure)


if __name__ == "__main__":
    main()
