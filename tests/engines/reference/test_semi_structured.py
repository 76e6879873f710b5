"""PyTorch's semi-structured tensors: packing, unpacking and swapping masks, all on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from engines.base import GenerationRequest
from engines.directory.build import BuildRequest
from engines.errors import EngineDirectoryError, MaskError, UnknownMaskError
from engines.reference.build import build as build_reference
from engines.reference.engine import ReferenceEngine
from engines.reference.semi_structured import (
    PackedMasks,
    PackedWeight,
    pack,
    sparse_tensor,
    swap_,
    unpack_semi_structured,
)
from engines.sampling import SamplingParams
from maskgen.format.mask import Mask
from maskgen.format.pattern import TWO_FOUR
from maskgen.format.placements import keep_from_codes, project
from tests.engines.tensorrt_llm.helpers import mask_file, masked_state, random_mask
from tests.tiny_model import make_tiny_llama

SHAPES = {"a": (64, 128), "b": (32, 64), "odd": (24, 40)}


def _mask(seed: int, shapes: dict[str, tuple[int, int]] = SHAPES) -> Mask:
    draw = np.random.default_rng(seed)
    codes = {
        name: project(draw.random(s, dtype=np.float32), TWO_FOUR) for name, s in shapes.items()
    }
    return Mask(codes, "0" * 64, "random", "test", None, seed)


def _masked(weight: torch.Tensor, mask: Mask, layer: str) -> torch.Tensor:
    keep = torch.from_numpy(keep_from_codes(mask.codes[layer], TWO_FOUR))
    return torch.where(keep, weight, torch.zeros((), dtype=weight.dtype))


def _linears(dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.nn.Linear]:
    torch.manual_seed(0)
    return {name: torch.nn.Linear(k, n, bias=False, dtype=dtype) for name, (n, k) in SHAPES.items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(32, 64), (64, 128), (96, 320)])
def test_packing_is_exact_and_small(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = torch.randn(shape).to(dtype)
    weight = _masked(weight, _mask(1, {"w": shape}), "w")
    packed = pack(weight)
    assert torch.equal(unpack_semi_structured(packed), weight)
    assert packed.shape == weight.shape
    assert packed.nbytes / weight.nbytes == 9 / 16


def test_every_placement_and_zeros_inside_kept_pairs() -> None:
    pairs = torch.tensor(
        [(1, 2, 0, 0), (1, 0, 2, 0), (1, 0, 0, 2), (0, 1, 2, 0), (0, 1, 0, 2), (0, 0, 1, 2)]
    )
    groups = torch.cat([pairs, 3 * torch.eye(4, dtype=pairs.dtype), torch.zeros_like(pairs[:1])])
    draw = torch.Generator().manual_seed(0)
    weight = groups[torch.randint(len(groups), (32, 32), generator=draw)].flatten(1)
    weight = weight.to(torch.bfloat16)
    assert torch.equal(unpack_semi_structured(pack(weight)), weight)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.zeros(32, 64), "float32 has no sparse kernel"),
        (torch.zeros(24, 64, dtype=torch.bfloat16), r"\(24, 64\) is no multiple of \(32, 64\)"),
        (torch.zeros(32, 48, dtype=torch.bfloat16), r"\(32, 48\) is no multiple"),
        (torch.zeros(64, dtype=torch.bfloat16), r"\(64,\)"),
    ],
)
def test_weights_without_a_kernel_are_refused(weight: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(weight)


def test_dense_weights_are_refused_where_pytorch_would_drop_them() -> None:
    weight = torch.zeros(32, 64, dtype=torch.bfloat16)
    weight[3, 8:11] = 1
    with pytest.raises(ValueError, match=r"1 of 512 groups .* row 3, inputs 8 to 11"):
        pack(weight)


def test_linear_takes_the_sparse_kernel() -> None:
    """On a CPU that kernel does not exist, and PyTorch says which one it looked for."""
    weight = _masked(_linears()["a"].weight.detach(), _mask(0), "a")
    tensor = sparse_tensor(pack(weight), "cpu")
    with pytest.raises(NotImplementedError, match="_sparse_semi_structured"):
        torch.nn.functional.linear(torch.zeros(8, 128, dtype=torch.bfloat16), tensor)


def test_masks_are_swapped_in_place() -> None:
    linears = _linears()
    dense = {name: linear.weight.detach().clone() for name, linear in linears.items()}
    masks = PackedMasks(linears)
    for seed, name in enumerate(("general", "french")):
        masks.add(name, _mask(seed))
    assert masks.sparse_layers == ("a", "b")
    assert masks.kernels() == {
        "64 x 128": "CUTLASS 2:4",
        "32 x 64": "CUTLASS 2:4",
        "24 x 40": "dense: shape (24, 40) is no multiple of (32, 64)",
    }
    addresses = set()
    for seed, name in ((0, "general"), (1, "french"), (0, "general")):
        masks.activate(name)
        assert masks.active == name
        for layer, linear in linears.items():
            weight = linear.weight if layer == "odd" else linear.weight.to_dense()
            assert torch.equal(weight, _masked(dense[layer], _mask(seed), layer)), (name, layer)
        addresses.add(linears["a"].weight.packed.data_ptr())
    assert len(addresses) == 1
    sparse = (64 * 128 + 32 * 64) * 2 * 9 // 16
    assert masks.nbytes("french") == sparse + 24 * 40 * 2


def test_masks_come_and_go() -> None:
    masks = PackedMasks(_linears())
    masks.add("general", _mask(0))
    with pytest.raises(MaskError, match="'general' is loaded already"):
        masks.add("general", _mask(1))
    with pytest.raises(MaskError, match="other layers"):
        masks.add("few", _mask(0, {"a": (64, 128)}))
    with pytest.raises(UnknownMaskError):
        masks.activate("french")
    masks.activate("general")
    masks.remove("general")
    assert masks.active is None
    with pytest.raises(UnknownMaskError):
        masks.remove("general")


def test_a_swap_keeps_the_shape() -> None:
    weight = sparse_tensor(pack(torch.zeros(32, 64, dtype=torch.bfloat16)), "cpu")
    other: PackedWeight = pack(torch.zeros(64, 64, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"\(64, 64\) cannot replace \(32, 64\)"):
        swap_(weight, other)


@pytest.fixture
def kernel_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A CPU form of the kernel that linear layers call, which counts its calls."""
    calls = [0]

    def multiply(
        mat1: torch.Tensor,
        mat1_meta: torch.Tensor,
        mat2: torch.Tensor,
        *,
        out_dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        calls[0] += 1
        return unpack_semi_structured(PackedWeight(mat1, mat1_meta)) @ mat2

    library = torch.library.Library("aten", "IMPL")
    library.impl("_sparse_semi_structured_mm", multiply, "CPU")
    monkeypatch.setattr("engines.reference.engine.has_sparse_kernels", lambda device: True)
    yield calls
    library._destroy()


async def test_the_reference_engine_swaps_packed_masks(
    kernel_on_the_cpu: list[int], tmp_path: Path
) -> None:
    """All of the GPU path but the kernel: bf16, packed weights, masks exchanged in place."""
    model = make_tiny_llama(tmp_path / "hf")
    masks = {n: mask_file(model, tmp_path / f"{n}.safetensors", i) for i, n in enumerate("ab")}
    build_reference(BuildRequest(model, "tiny", masks, tmp_path / "engine"))
    engine = ReferenceEngine(tmp_path / "engine")
    info = engine.describe()
    assert (info.sparse_layers, info.eligible_layers, info.layout) == (14, 14, "cutlass")
    extra = mask_file(model, tmp_path / "c.safetensors", 2)
    await engine.load_mask("c", extra)
    for name in ("a", "b", "a", "c"):
        request = GenerationRequest(
            name, (5, 17, 200), SamplingParams(temperature=0.0, max_tokens=4, logprobs=0), mask=name
        )
        chunks = [chunk async for chunk in engine.generate(request)]
        assert chunks[-1].finish_reason == "length", chunks[-1].error
        tokens = [token for chunk in chunks for token in chunk.token_ids]
        expected = _by_hand(model, random_mask(model, "abc".index(name)), [5, 17, 200, *tokens])
        found = [lp.logprob for chunk in chunks for lp in chunk.logprobs or ()]
        assert found == pytest.approx(expected[2:], abs=0.05)
    assert kernel_on_the_cpu[0] == 4 * 4 * 14
    await engine.unload_mask("c")
    await engine.close()


def _by_hand(model: Path, mask: Mask, tokens: list[int]) -> list[float]:
    """Log-probs of tokens[1:] by transformers with masked dense weights, in bf16."""
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    network.load_state_dict(masked_state(model, mask), strict=False)
    with torch.no_grad():
        logits = network(torch.tensor([tokens])).logits[0].float()
    logprobs = torch.log_softmax(logits, dim=-1)
    return [float(logprobs[i, token]) for i, token in enumerate(tokens[1:])]


@pytest.mark.parametrize("device", ["cuda", "mps", "nonsense"])
def test_devices_that_cannot_run_it(tmp_path: Path, device: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    model = make_tiny_llama(tmp_path / "hf")
    build_reference(BuildRequest(model, "tiny", {}, tmp_path / "engine"))
    with pytest.raises(EngineDirectoryError, match=f"device '{device}'"):
        ReferenceEngine(tmp_path / "engine", device=device)
