"""Attention and schedules of learning runs against what torch and transformers compute."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from maskgen.learning.attention import (
    BLOCKED_ATTENTION,
    blocked_attention,
    use_blocked_attention,
)
from maskgen.learning.schedules import cosine, exponential, linear
from maskgen.torch_model import load_model
from tests.tiny_model import make_tiny_llama


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3", "phi3", "olmo2"])
def test_a_model_with_blocked_attention_is_as_exact_as_with_transformers(tmp_path, architecture):
    directory = make_tiny_llama(tmp_path / "model", architecture=architecture)
    model = load_model(directory, "bf16", "cpu")
    ids = torch.randint(0, 200, (2, 200), generator=torch.Generator().manual_seed(1))
    expected = model(input_ids=ids, use_cache=False).logits.float()
    exact = load_model(directory, "fp32", "cpu")(input_ids=ids, use_cache=False).logits
    assert switched(model)
    ours = model(input_ids=ids, use_cache=False).logits.float()
    assert not torch.equal(ours, expected)
    # Neither is exact in bf16; ours may be no further from fp32 than transformers' by much.
    assert (ours - exact).abs().mean() < 1.5 * (expected - exact).abs().mean()


def switched(model) -> bool:
    """Whether a model has blocked attention now, on any processor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
        return use_blocked_attention(model, 300).startswith(f"{BLOCKED_ATTENTION} attention")


@pytest.mark.parametrize("length", [1, 64, 128, 129, 300])
@pytest.mark.parametrize(("heads", "groups"), [(6, 2), (3, 3), (4, 1)])
def test_blocked_attention_and_its_gradients(length, heads, groups):
    generator = torch.Generator().manual_seed(2)
    shapes = [(2, heads, length, 16), (2, groups, length, 16), (2, groups, length, 8)]
    inputs = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    ours = [tensor.clone().requires_grad_(True) for tensor in inputs]
    exact = [tensor.float().requires_grad_(True) for tensor in inputs]
    out, _ = blocked_attention(torch.nn.Identity(), *ours, None, scaling=0.3)
    expected = F.scaled_dot_product_attention(
        *exact, is_causal=True, scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    assert out.shape == (2, length, heads, 8)
    torch.testing.assert_close(out.float(), expected, rtol=0.02, atol=0.02)
    weights = torch.randn(out.shape, generator=generator)
    (out.float() * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, theirs in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine.grad.float(), theirs.grad, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("padding", [0, 5])
def test_what_is_not_plainly_causal_goes_to_transformers(tmp_path, padding):
    """A window of the model's, or padding: the same bytes as with its own attention."""
    window = {} if padding else {"architecture": "mistral", "sliding_window": 8}
    model = load_model(make_tiny_llama(tmp_path / "model", **window), "bf16", "cpu")
    ids = torch.randint(0, 200, (2, 33), generator=torch.Generator().manual_seed(1))
    shown = torch.ones_like(ids)
    shown[:, :padding] = 0
    expected = model(input_ids=ids, attention_mask=shown, use_cache=False).logits
    assert switched(model)
    ours = model(input_ids=ids, attention_mask=shown, use_cache=False).logits
    torch.testing.assert_close(ours[:, padding:], expected[:, padding:], rtol=0, atol=0)


def test_blocked_attention_computes_in_the_type_of_autocast(tmp_path):
    model = load_model(make_tiny_llama(tmp_path / "model"), "fp32", "cpu")
    ids = torch.randint(0, 200, (1, 200), generator=torch.Generator().manual_seed(1))
    exact = model(input_ids=ids, use_cache=False).logits
    assert switched(model)
    torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, exact)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(input_ids=ids, use_cache=False).logits
    assert 0 < (rounded - exact).abs().mean() < 0.1 * exact.abs().mean()


@pytest.mark.parametrize(
    ("options", "supported", "length", "reason"),
    [
        ({}, False, 33, "the processor has no bf16 instructions"),
        ({}, True, 1025, "sequences of 1025 tokens are longer than 1024"),
        ({"architecture": "gemma2"}, True, 33, "transformers runs gemma2 models with it"),
    ],
)
def test_a_model_keeps_its_attention_and_says_why(
    tmp_path, monkeypatch, options, supported, length, reason
):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported)
    model = load_model(make_tiny_llama(tmp_path / "model", **options), "bf16", "cpu")
    before = model.config._attn_implementation
    assert use_blocked_attention(model, length) == f"{before} attention, because {reason}"
    assert model.config._attn_implementation == before


def test_layers_with_a_window_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    directory = make_tiny_llama(tmp_path / "model", architecture="mistral", sliding_window=8)
    said = [use_blocked_attention(load_model(directory, "bf16", "cpu"), n) for n in (8, 33)]
    assert said[0] == f"{BLOCKED_ATTENTION} attention"
    assert said[1].endswith("but torch's in layers with a window of 8 tokens")


def test_schedules_start_and_end_where_they_should():
    for schedule in (linear, exponential, cosine):
        assert schedule(4.0, 0.05, 0.0) == pytest.approx(4.0)
        assert schedule(4.0, 0.05, 1.0) == pytest.approx(0.05)
        assert schedule(4.0, 0.05, 1.7) == pytest.approx(0.05)
        assert 0.05 < schedule(4.0, 0.05, 0.5) < 4.0
    assert linear(100.0, 500.0, 0.25) == 200.0
    assert exponential(1.0, 0.01, 0.5) == pytest.approx(0.1)
