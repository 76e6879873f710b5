"""Native RMSNorm against transformers' own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from maskgen.learning.native import native_module
from maskgen.learning.norms import use_native_norms
from maskgen.torch_model import load_model
from tests.tiny_model import make_tiny_llama


def llama_norm(size: int, dtype: torch.dtype, random: torch.Generator) -> LlamaRMSNorm:
    norm = LlamaRMSNorm(size, eps=1e-5)
    norm.weight.data = 1 + torch.randn(size, generator=random) / 2
    return norm.to(dtype).requires_grad_(False)


@given(
    rows=st.integers(1, 5),
    sixteenths=st.integers(1, 9),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
    size=st.sampled_from([1e-3, 1.0, 50.0]),
    seed=st.integers(0, 2**16),
)
def test_native_norms_equal_transformers(rows, sixteenths, dtype, size, seed):
    random = torch.Generator().manual_seed(seed)
    theirs = llama_norm(16 * sixteenths, dtype, random)
    x = (size * torch.randn(2, rows, 16 * sixteenths, generator=random)).to(dtype)
    slope = torch.randn(x.shape, generator=random).to(dtype)
    exact = theirs.double()
    wide = x.double().requires_grad_(True)
    # In fp64 by hand: transformers' norm computes in fp32 whatever it is given.
    normal = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5) * exact.weight
    (expected,) = torch.autograd.grad((normal * slope.double()).sum(), wide)
    model = torch.nn.Sequential(theirs.to(dtype))
    plain = theirs(x)
    assert use_native_norms(model) == "1 of 1 norms by native kernels"
    mine = x.clone().requires_grad_(True)
    found = model(mine)
    tolerance = 2**-7 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found, plain, rtol=tolerance, atol=1e-6)
    (gradient,) = torch.autograd.grad((found.float() * slope.float()).sum(), mine)
    scale = expected.abs().max().item()
    torch.testing.assert_close(gradient.double(), expected, rtol=tolerance, atol=tolerance * scale)


def test_native_norms_refuse_what_does_not_fit():
    norm = native_module().rms_norm
    x, weight, scales = torch.zeros(2, 16), torch.ones(16), torch.zeros(2)
    with pytest.raises(ValueError, match="rows must divide by 16"):
        norm(torch.zeros(2, 8), torch.ones(8), 1e-5, torch.zeros(2, 8), scales)
    with pytest.raises(ValueError, match="size and type of a row"):
        norm(x, weight.bfloat16(), 1e-5, torch.zeros(2, 16), scales)
    with pytest.raises(ValueError, match="what is written must have the shape"):
        norm(x, weight, 1e-5, torch.zeros(1, 16), scales)
    with pytest.raises(ValueError, match="a scale for every row"):
        norm(x, weight, 1e-5, torch.zeros(2, 16), scales[:1])


@pytest.mark.parametrize(
    ("architecture", "said"),
    [("llama", "5 of 5"), ("qwen3", "9 of 9"), ("olmo2", "9 of 9"), ("gemma3_text", "0 of 13")],
)
def test_a_model_with_native_norms_answers_the_same(tmp_path, architecture, said):
    """Gemma adds 1 to its weights, so its norms stay as they are."""
    directory = make_tiny_llama(tmp_path / "m", architecture=architecture)
    model = load_model(directory, "bf16", "cpu")
    ids = torch.arange(40)[None]
    exact = load_model(directory, "fp32", "cpu")(input_ids=ids, use_cache=False).logits
    expected = model(input_ids=ids, use_cache=False).logits.float()
    assert use_native_norms(model) == f"{said} norms by native kernels"
    found = model(input_ids=ids, use_cache=False).logits.float()
    # OLMo rounds after the weight, not before; in bf16 neither is exact.
    assert (found - exact).abs().mean() <= 1.3 * (expected - exact).abs().mean()


def test_a_norm_that_is_tuned_stays_as_it_is():
    norm = llama_norm(16, torch.float32, torch.Generator()).requires_grad_(True)
    assert use_native_norms(torch.nn.Sequential(norm)) == "0 of 1 norms by native kernels"


def test_a_norm_without_a_known_epsilon_stays_as_it_is():
    frozen = torch.nn.RMSNorm(16).requires_grad_(False)
    assert use_native_norms(torch.nn.Sequential(frozen)) == "0 of 1 norms by native kernels"
    assert (
        use_native_norms(torch.nn.Sequential(torch.nn.RMSNorm(16, 1e-5).requires_grad_(False)))[0]
        == "1"
    )


class OtherRMSNorm(LlamaRMSNorm):
    """Has an epsilon of its own beside the one that it names."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.weight * hidden_states * (hidden_states.pow(2).mean(-1, True) + 1e-3).rsqrt()


def test_a_norm_of_another_epsilon_stays_as_it_is():
    other = OtherRMSNorm(16, eps=1e-6).requires_grad_(False)
    assert use_native_norms(torch.nn.Sequential(other)) == "0 of 1 norms by native kernels"


def test_input_of_another_type_is_normed_as_before():
    norm = llama_norm(32, torch.bfloat16, torch.Generator().manual_seed(1))
    x = torch.randn(3, 32)
    expected = norm(x)
    use_native_norms(torch.nn.Sequential(norm))
    assert torch.equal(norm(x), expected)
    assert norm(x).dtype == torch.float32


def test_what_a_norm_gives_may_be_changed_in_place():
    norm = llama_norm(32, torch.float32, torch.Generator().manual_seed(1))
    use_native_norms(torch.nn.Sequential(norm))
    x = torch.randn(2, 3, 32, requires_grad=True)
    out = norm(x)
    out.mul_(2)
    out.sum().backward()
    assert x.grad is not None
