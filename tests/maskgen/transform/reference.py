"""A decoder in fp64, written from the architectures' definitions alone, for stored tensors.

`model.double()` of transformers is no reference: some of its norms and its rotary embedding stay in
fp32, which hides what a transform may have broken.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from maskgen.format.json_file import read_json

GEMMA = "gemma3_text"


def logits(directory: Path, ids: Tensor) -> Tensor:
    """(length, vocabulary) fp64 logits of (length,) token ids."""
    config = read_json(directory / "config.json", ValueError)
    stored = load_file(directory / "model.safetensors")
    tensors = {name: tensor.double() for name, tensor in stored.items()}
    return _Decoder(config, tensors)(ids)


class _Decoder:
    def __init__(self, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.config = config
        self.tensors = tensors
        self.gemma = config["model_type"] == GEMMA
        self.heads = config["num_attention_heads"]
        self.keys = config["num_key_value_heads"]
        self.width = config.get("head_dim") or config["hidden_size"] // self.heads

    def __call__(self, ids: Tensor) -> Tensor:
        table = self.tensors["model.embed_tokens.weight"]
        x = table[ids] * (self.config["hidden_size"] ** 0.5 if self.gemma else 1.0)
        for layer in range(self.config["num_hidden_layers"]):
            x = self.layer(f"model.layers.{layer}", x)
        return self.norm("model.norm", x) @ self.tensors.get("lm_head.weight", table).T

    def layer(self, name: str, x: Tensor) -> Tensor:
        attended = self.attention(f"{name}.self_attn", self.norm(f"{name}.input_layernorm", x))
        if self.gemma:
            x = x + self.norm(f"{name}.post_attention_layernorm", attended)
            fed = self.mlp(f"{name}.mlp", self.norm(f"{name}.pre_feedforward_layernorm", x))
            return x + self.norm(f"{name}.post_feedforward_layernorm", fed)
        x = x + attended
        return x + self.mlp(f"{name}.mlp", self.norm(f"{name}.post_attention_layernorm", x))

    def attention(self, name: str, x: Tensor) -> Tensor:
        length = len(x)
        query = self.linear(f"{name}.q_proj", x).view(length, self.heads, self.width)
        key = self.linear(f"{name}.k_proj", x).view(length, self.keys, self.width)
        value = self.linear(f"{name}.v_proj", x).view(length, self.keys, self.width)
        if f"{name}.q_norm.weight" in self.tensors:
            query, key = self.norm(f"{name}.q_norm", query), self.norm(f"{name}.k_norm", key)
        query, key = self.rotary(query), self.rotary(key)
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        scale = self.config["query_pre_attn_scalar"] if self.gemma else self.width
        heads = []
        for head in range(self.heads):
            own = head * self.keys // self.heads
            scores = query[:, head] @ key[:, own].T / scale**0.5
            weights = scores.masked_fill(future, float("-inf")).softmax(-1)
            heads.append(weights @ value[:, own])
        return self.linear(f"{name}.o_proj", torch.cat(heads, dim=-1))

    def rotary(self, x: Tensor) -> Tensor:
        """Every layer's theta is 10,000: the tests' models set no other one."""
        half = self.width // 2
        frequencies = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = torch.arange(len(x), dtype=torch.float64)[:, None] * frequencies
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        left, right = x[..., :half], x[..., half:]
        return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)

    def mlp(self, name: str, x: Tensor) -> Tensor:
        gate = self.linear(f"{name}.gate_proj", x)
        active = F.gelu(gate, approximate="tanh") if self.gemma else F.silu(gate)
        return self.linear(f"{name}.down_proj", active * self.linear(f"{name}.up_proj", x))

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.tensors[f"{name}.weight"], self.tensors.get(f"{name}.bias"))

    def norm(self, name: str, x: Tensor) -> Tensor:
        gamma = self.tensors[f"{name}.weight"]
        spread = (x.square().mean(-1, keepdim=True) + self.config["rms_norm_eps"]).rsqrt()
        return x * spread * (1 + gamma if self.gemma else gamma)
