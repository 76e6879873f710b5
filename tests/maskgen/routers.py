"""Mixtures whose router sends every token to the same experts, so that others see none."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file


def choose_first_experts(model_dir: Path) -> None:
    """Make all experts of a Mixtral draw, which the first ones win."""
    file = model_dir / "model.safetensors"
    weights = load_file(file)
    routers = [name for name in weights if name.endswith("block_sparse_moe.gate.weight")]
    assert routers
    for name in routers:
        weights[name][:] = 0
    save_file(weights, file, metadata={"format": "pt"})
