"""A Llama decoder in plain torch, with random weights: what is measured where no hub is reachable.

RMSNorm, rotary positions, grouped-query attention, gated SiLU, tied head, no cache of keys and
values: as transformers' LlamaForCausalLM computes them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a decoder.

    Attributes:
        vocabulary: tokens.
        width: of the residual stream.
        layers: decoder layers.
        heads: query heads; `width / heads` is a head's size.
        kv_heads: key and value heads.
        inner: width inside the feed-forward part.
        theta: base of the rotary frequencies.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    theta: float = 500_000.0

    @property
    def head(self) -> int:
        """Size of a head."""
        return self.width // self.heads


LLAMA_1B = DecoderShape(128256, 2048, 16, 32, 8, 8192)
"""Llama-3.2-1B (its config.json), without the scaling of long contexts."""


@dataclass(frozen=True)
class DecoderOutput:
    """What a forward pass gives: `logits`, (batch, length, vocabulary)."""

    logits: Tensor


class Attention(nn.Module):
    """Causal self-attention with shared key and value heads."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self._shape = shape
        self.q_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.k_proj = nn.Linear(shape.width, shape.kv_heads * shape.head, bias=False)
        self.v_proj = nn.Linear(shape.width, shape.kv_heads * shape.head, bias=False)
        self.o_proj = nn.Linear(shape.width, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, width) -> the same."""
        batch, length, width = x.shape

        def heads(y: Tensor, count: int) -> Tensor:
            return y.view(batch, length, count, self._shape.head).transpose(1, 2)

        q = rotated(heads(self.q_proj(x), self._shape.heads), self._shape.theta)
        k = rotated(heads(self.k_proj(x), self._shape.kv_heads), self._shape.theta)
        v = heads(self.v_proj(x), self._shape.kv_heads)
        repeats = self._shape.heads // self._shape.kv_heads
        k, v = (t.repeat_interleave(repeats, dim=1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.o_proj(y.transpose(1, 2).reshape(batch, length, width))
        return out


class FeedForward(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.inner, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.inner, bias=False)
        self.down_proj = nn.Linear(shape.inner, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, width) -> the same."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class DecoderLayer(nn.Module):
    """Attention and feed-forward part, each behind a norm and beside the residual stream."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.input_norm = nn.RMSNorm(shape.width, eps=1e-5)
        self.attention = Attention(shape)
        self.inner_norm = nn.RMSNorm(shape.width, eps=1e-5)
        self.feed_forward = FeedForward(shape)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, width) -> the same."""
        x = x + self.attention(self.input_norm(x))
        out: Tensor = x + self.feed_forward(self.inner_norm(x))
        return out


class Decoder(nn.Module):
    """The whole model; called as those of transformers are."""

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(DecoderLayer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=1e-5)

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> DecoderOutput:
        """(batch, length) token ids -> logits; there is no cache to use."""
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = layer(x)
        return DecoderOutput(F.linear(self.norm(x), self.embedding.weight))


def rotated(x: Tensor, theta: float) -> Tensor:
    """Rotary positions: (batch, heads, length, head) turned by position, halves paired."""
    half = x.shape[-1] // 2
    steps = torch.arange(half, device=x.device, dtype=torch.float32)
    positions = torch.arange(x.shape[-2], device=x.device, dtype=torch.float32)
    angles = positions[:, None] * theta ** (-steps / half)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def random_decoder(shape: DecoderShape, device: torch.device, seed: int = 0) -> Decoder:
    """A bf16 decoder whose weights are N(0, 0.02), made on its device."""
    with torch.device("meta"):
        model = Decoder(shape)
    model = model.to(torch.bfloat16).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, 0.02, generator=generator)
    return model


def linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers that masks are of, by name; the head is the embedding's and none of them."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
