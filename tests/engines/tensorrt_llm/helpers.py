"""Models, masks and stand-in tools for the TensorRT-LLM tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from maskgen.format.digests import base_digest
from maskgen.format.mask import Mask
from maskgen.format.mask_file import write_mask
from maskgen.format.pattern import TWO_FOUR
from maskgen.format.placements import keep_from_codes, project
from tests.tiny_model import make_tiny_llama

LINEAR = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)


def random_mask(
    model: Path, seed: int = 0, wanted: Callable[[str], bool] = lambda layer: True
) -> Mask:
    """A random 2:4 mask of the decoder layers' linear weights."""
    draw = np.random.default_rng(seed)
    codes = {}
    for name, tensor in load_file(model / "model.safetensors").items():
        layer = name.removesuffix(".weight")
        if layer.endswith(LINEAR) and name.endswith(".weight") and wanted(layer):
            codes[layer] = project(draw.random(tuple(tensor.shape), dtype=np.float32), TWO_FOUR)
    return Mask(codes, base_digest(model), "random", f"domain{seed}", None, seed)


def mask_file(model: Path, path: Path, seed: int = 0) -> Path:
    """The same, as a file."""
    write_mask(path, random_mask(model, seed))
    return path


def masked_state(model: Path, mask: Mask | None) -> dict[str, torch.Tensor]:
    """The model's tensors with the mask applied, by torch."""
    state = load_file(model / "model.safetensors")
    for layer, codes in (mask.codes if mask else {}).items():
        keep = torch.from_numpy(keep_from_codes(codes, TWO_FOUR))
        weight = state[f"{layer}.weight"]
        state[f"{layer}.weight"] = torch.where(keep, weight, torch.zeros_like(weight))
    return state


def sparse_model(directory: Path, mask_seed: int = 0, **settings: object) -> Path:
    """A tiny model whose own weights are already 2:4, as a directory."""
    from safetensors.torch import save_file

    model = make_tiny_llama(directory, **settings)  # type: ignore[arg-type]
    state = masked_state(model, random_mask(model, mask_seed))
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})
    return model


def restore(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Un-fuse and un-split a checkpoint back into Hugging Face tensors, independently."""
    config = json.loads((checkpoint / "config.json").read_text())
    tp, pp = config["mapping"]["tp_size"], config["mapping"]["pp_size"]
    heads, kv, size = (
        config[name] for name in ("num_attention_heads", "num_key_value_heads", "head_size")
    )
    ranks = [load_file(checkpoint / f"rank{r}.safetensors") for r in range(tp * pp)]
    per_stage = config["num_hidden_layers"] // pp
    table = [rank["transformer.vocab_embedding.weight"] for rank in ranks[:tp]]
    last = ranks[-tp:]
    shared = config.get("share_embedding_table", False)
    head = torch.cat(table if shared else [rank["lm_head.weight"] for rank in last])
    assert not head[config["vocab_size"] :].any()
    state = {
        "model.norm.weight": last[0]["transformer.ln_f.weight"],
        "lm_head.weight": head[: config["vocab_size"]],
        "model.embed_tokens.weight": head[: config["vocab_size"]] if shared else table[0],
    }
    for layer in range(config["num_hidden_layers"]):
        stage, local = divmod(layer, per_stage)
        parts = [
            {
                name.removeprefix(f"transformer.layers.{local}."): tensor
                for name, tensor in rank.items()
                if name.startswith(f"transformer.layers.{local}.")
            }
            for rank in ranks[stage * tp : (stage + 1) * tp]
        ]
        for name, tensor in _restore_layer(parts, heads // tp, kv, size).items():
            state[f"model.layers.{layer}.{name}"] = tensor
    return state


def _restore_layer(
    parts: list[dict[str, torch.Tensor]], heads: int, kv: int, size: int
) -> dict[str, torch.Tensor]:
    tp = len(parts)
    local_kv = max(1, kv // tp)
    copies = max(1, tp // kv)
    state = {}
    for kind in ("weight", "bias"):
        if f"attention.qkv.{kind}" not in parts[0]:
            continue
        cut = [
            part[f"attention.qkv.{kind}"].split([heads * size, local_kv * size, local_kv * size])
            for part in parts
        ]
        state[f"self_attn.q_proj.{kind}"] = torch.cat([c[0] for c in cut])
        state[f"self_attn.k_proj.{kind}"] = torch.cat([c[1] for c in cut[::copies]])
        state[f"self_attn.v_proj.{kind}"] = torch.cat([c[2] for c in cut[::copies]])
    for ours, theirs, axis in (
        ("self_attn.o_proj", "attention.dense", 1),
        ("mlp.gate_proj", "mlp.fc", 0),
        ("mlp.up_proj", "mlp.gate", 0),
        ("mlp.down_proj", "mlp.proj", 1),
    ):
        state[f"{ours}.weight"] = torch.cat([p[f"{theirs}.weight"] for p in parts], dim=axis)
    for ours, theirs in (
        ("input_layernorm", "input_layernorm"),
        ("post_attention_layernorm", "post_layernorm"),
        ("self_attn.q_norm", "attention.q_layernorm"),
        ("self_attn.k_norm", "attention.k_layernorm"),
    ):
        if f"{theirs}.weight" in parts[0]:
            state[f"{ours}.weight"] = parts[0][f"{theirs}.weight"]
    return state
