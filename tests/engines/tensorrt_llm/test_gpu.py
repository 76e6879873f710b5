"""What only a GPU with TensorRT-LLM 1.2 can show; skipped, with the reason, everywhere else.

Run with `pytest -m gpu tests/engines/tensorrt_llm/test_gpu.py` in TensorRT-LLM's container.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engines.base import GenerationRequest
from engines.directory.build import BuildRequest
from engines.errors import EngineDirectoryError
from engines.reference.build import build as build_reference
from engines.reference.engine import ReferenceEngine
from engines.reference.semi_structured import pack, sparse_tensor, swap_
from engines.sampling import SamplingParams
from engines.tensorrt_llm.build import build, resume
from engines.tensorrt_llm.directory import write_directory
from engines.tensorrt_llm.engine import TensorRtLlmEngine
from engines.tensorrt_llm.record import read_record
from engines.tensorrt_llm.settings import BuildSettings
from engines.tensorrt_llm.sparsity_log import parse_log
from engines.tensorrt_llm.version import find_environment
from tests.engines.tensorrt_llm.helpers import mask_file
from tests.tiny_model import make_tiny_llama

_PROBLEMS = find_environment().problems
_CAPABLE = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
needs_tensorrt_llm = pytest.mark.skipif(bool(_PROBLEMS), reason="; ".join(_PROBLEMS) or "present")
needs_gpu = pytest.mark.skipif(not _CAPABLE, reason="no CUDA device of capability 8.0 or higher")
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]

PROMPT = (5, 17, 200, 31)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers as wide as a 7B model's: sparse tactics lose at small sizes."""
    return make_tiny_llama(
        tmp_path_factory.mktemp("hf") / "wide",
        hidden_size=4096,
        intermediate_size=11008,
        num_attention_heads=32,
        num_key_value_heads=32,
        initializer_range=0.02,
    )


@pytest.fixture(scope="module")
def masks(model: Path) -> dict[str, Path]:
    return {n: mask_file(model, model.parent / f"{n}.safetensors", i) for i, n in enumerate("ab")}


async def _answer(engine: TensorRtLlmEngine | ReferenceEngine, mask: str) -> list[int]:
    sampling = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    request = GenerationRequest(mask, PROMPT, sampling, mask=mask)
    return [token async for chunk in engine.generate(request) for token in chunk.token_ids]


@needs_tensorrt_llm
@pytest.mark.parametrize("per_mask", ["engine", "refit"])
async def test_engines_use_sparse_tactics_and_agree_with_the_reference(
    model: Path, masks: dict[str, Path], tmp_path: Path, per_mask: str
) -> None:
    build(BuildRequest(model, "wide", masks, tmp_path / "trt"), per_mask=per_mask)
    _, record = read_record(tmp_path / "trt")
    assert all(engine.chosen for engine in record.engines.values())
    build_reference(BuildRequest(model, "wide", masks, tmp_path / "reference"))
    reference = ReferenceEngine(tmp_path / "reference")
    engine = TensorRtLlmEngine(tmp_path / "trt")
    for mask in masks:
        # The first token only: later ones depend on rounding.
        assert (await _answer(engine, mask))[0] == (await _answer(reference, mask))[0]
    await engine.close()
    await reference.close()


@needs_tensorrt_llm
def test_the_gemm_plugin_really_hides_the_weights(
    model: Path, masks: dict[str, Path], tmp_path: Path
) -> None:
    """Why the plugin is refused: the same build with it finds nothing eligible."""
    directory = tmp_path / "e"
    write_directory(BuildRequest(model, "wide", {"a": masks["a"]}, directory), BuildSettings())
    script = directory / "build.sh"
    script.write_text(script.read_text().replace("--gemm_plugin disable", "--gemm_plugin auto"))
    with pytest.raises(EngineDirectoryError, match="was built with gemm_plugin"):
        resume(directory)
    assert not parse_log((directory / "logs/a.log").read_text().splitlines()).eligible


@needs_gpu
def test_semi_structured_product_and_swap() -> None:
    draw = torch.Generator().manual_seed(0)
    weights = []
    for _ in range(2):
        weight = torch.randn(256, 512, generator=draw).to(torch.bfloat16)
        weights.append(weight * torch.tensor([1, 0, 0, 1]).repeat(128))
    x = torch.randn(8, 512, generator=draw).to(torch.bfloat16).cuda()
    tensor = sparse_tensor(pack(weights[0]), "cuda")
    for weight in weights:
        swap_(tensor, pack(weight))
        expected = x.float() @ weight.cuda().float().T
        torch.testing.assert_close(
            torch.nn.functional.linear(x, tensor).float(), expected, rtol=2e-2, atol=2e-1
        )


@needs_gpu
async def test_the_reference_engine_on_the_gpu(
    model: Path, masks: dict[str, Path], tmp_path: Path
) -> None:
    build_reference(BuildRequest(model, "wide", masks, tmp_path / "reference"))
    on_gpu = ReferenceEngine(tmp_path / "reference", device="cuda")
    on_cpu = ReferenceEngine(tmp_path / "reference")
    assert on_gpu.describe().sparse_layers == 14
    for mask in masks:
        assert (await _answer(on_gpu, mask))[0] == (await _answer(on_cpu, mask))[0]
    await on_gpu.close()
    await on_cpu.close()
