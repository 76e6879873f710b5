"""Our checkpoints against those of NVIDIA's Model Optimizer, an independent exporter.

Bit for bit equal, apart from what `EXPECTED_CONFIG_DIFFERENCES` and `_their_embedding` name:
Model Optimizer cuts the embedding over the ranks (`use_parallel_embedding`), where TensorRT-LLM's
own converter, and we, leave it whole; it names the architecture of all Qwens `QWenForCausalLM`
and leaves out what TensorRT-LLM needs to load them; without TensorRT-LLM installed it also leaves
out the rotary base, writes no quantisation fields that we do not, and asks for fp16 logits.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engines.directory.checkpoint import Checkpoint
from engines.tensorrt_llm.checkpoint import write_checkpoint
from engines.tensorrt_llm.config import Mapping
from tests.engines.tensorrt_llm.helpers import random_mask, sparse_model
from tests.tiny_model import make_tiny_llama

pytestmark = [pytest.mark.trtllm, pytest.mark.filterwarnings("ignore")]

FAMILIES = {
    "llama": ("llama", {"architecture": "llama", "tie_word_embeddings": False}),
    "tied llama": ("llama", {"architecture": "llama", "tie_word_embeddings": True}),
    "mistral": ("llama", {"architecture": "mistral", "tie_word_embeddings": False}),
    "qwen2": ("qwen", {"architecture": "qwen2", "tie_word_embeddings": False}),
    "qwen3": ("qwen", {"architecture": "qwen3", "tie_word_embeddings": False, "head_dim": 32}),
    "gemma": ("gemma", {"architecture": "gemma", "head_dim": 32}),
    # It has no name for Granite, whose weights are laid out as Llama's; the factors are ours alone.
    "granite": ("llama", {"architecture": "granite", "residual_multiplier": 0.5}),
}
EXPECTED_CONFIG_DIFFERENCES = {
    "producer": "names the exporter",
    "architecture": "LlamaForCausalLM and QWenForCausalLM for their descendants too",
    "logits_dtype": "float16; we keep the logits in float32",
    "use_parallel_embedding": "their embedding is cut over the ranks; of Gemma's so is ours",
}
EMBEDDING = "transformer.vocab_embedding.weight"


def _export(model: Path, kind: str, tp: int, out: Path) -> Path:
    from modelopt.torch.export import export_tensorrt_llm_checkpoint
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    with torch.inference_mode():
        export_tensorrt_llm_checkpoint(
            network, kind, torch.bfloat16, export_dir=out, inference_tensor_parallel=tp
        )
    return out


def _their_embedding(ranks: list[dict[str, torch.Tensor]], rows: int) -> torch.Tensor:
    """Their parts put together, without the rows that padding added."""
    whole = torch.cat([rank[EMBEDDING] for rank in ranks])
    assert not whole[rows:].any()
    return whole[:rows]


@pytest.mark.parametrize("vocab", [300, 301], ids=["even", "padded"])
@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_bitwise_equal_to_model_optimizer(tmp_path: Path, family: str, tp: int, vocab: int) -> None:
    kind, settings = FAMILIES[family]
    model = sparse_model(tmp_path / "model", vocab_size=vocab, **settings)
    theirs_at = _export(model, kind, tp, tmp_path / "theirs")

    # Our side starts from the dense model and applies the mask itself.
    dense = make_tiny_llama(tmp_path / "dense", vocab_size=vocab, **settings)
    ours_at = tmp_path / "ours"
    ours_at.mkdir()
    write_checkpoint(Checkpoint(dense), random_mask(dense), ours_at, mapping=Mapping(tp))

    theirs = [load_file(theirs_at / f"rank{rank}.safetensors") for rank in range(tp)]
    ours = [load_file(ours_at / f"rank{rank}.safetensors") for rank in range(tp)]
    embedding = _their_embedding(theirs, vocab)
    for left, right in zip(ours, theirs, strict=True):
        assert left.keys() == right.keys()
        whole = embedding if family != "gemma" else right[EMBEDDING]
        assert torch.equal(left[EMBEDDING].view(torch.int16), whole.view(torch.int16))
        for name in left.keys() - {EMBEDDING}:
            assert left[name].dtype == right[name].dtype == torch.bfloat16
            assert torch.equal(left[name].view(torch.int16), right[name].view(torch.int16)), name


@pytest.mark.parametrize("family", FAMILIES)
def test_configurations_agree(tmp_path: Path, family: str) -> None:
    kind, settings = FAMILIES[family]
    model = make_tiny_llama(tmp_path / "model", **settings)
    theirs_at = _export(model, kind, 2, tmp_path / "theirs")
    ours_at = tmp_path / "ours"
    ours_at.mkdir()
    write_checkpoint(Checkpoint(model), None, ours_at, mapping=Mapping(2))
    theirs = json.loads((theirs_at / "config.json").read_text())
    ours = json.loads((ours_at / "config.json").read_text())

    shared = ours.keys() & theirs.keys()
    assert len(shared) >= 18
    differing = {name for name in shared if ours[name] != theirs[name]}
    assert differing <= EXPECTED_CONFIG_DIFFERENCES.keys()
    assert ("use_parallel_embedding" in differing) == (family != "gemma")
    # What only they write is either a default of TensorRT-LLM's or about exporting.
    assert theirs.keys() - ours.keys() <= {
        "bias",
        "decoder",
        "lm_head_bias",
        "rank",
        "residual_mlp",
        "rmsnorm",
        "rotary_pct",
        "share_embedding_table",
    }
