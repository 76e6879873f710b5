"""Writes a tiny 2:4 checkpoint with the tool that this environment has (`make.sh` sets it up).

    python make.py llmcompressor|modelopt|torchao OUT

The model is a Llama of one layer with fixed random weights, pruned and saved by the tool's own
code. It needs that tool, torch and transformers, and nothing of twofour: old releases of the tools
bring old releases of everything else.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

os.environ["HF_HUB_OFFLINE"] = "1"
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def tiny_llama() -> LlamaForCausalLM:
    """A random bf16 model of 3,000 weights; k and v have 8 outputs, the others 16 or more."""
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=32,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.3,
        architectures=["LlamaForCausalLM"],
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def texts() -> list[list[int]]:
    """Random tokens to calibrate on."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 32, (8, 16), generator=generator).tolist()


def llmcompressor(model: LlamaForCausalLM, out: Path) -> None:
    """SparseGPT by llm-compressor, saved as that release saves what it compresses."""
    from datasets import Dataset

    try:
        from llmcompressor import oneshot
        from llmcompressor.modifiers.pruning import SparseGPTModifier
    except ImportError:
        from llmcompressor.modifiers.obcq import SparseGPTModifier
        from llmcompressor.transformers import oneshot

    data = Dataset.from_dict({"input_ids": texts(), "attention_mask": [[1] * 16] * 8})
    recipe = SparseGPTModifier(
        sparsity=0.5, mask_structure="2:4", targets=[rf"re:.*{name}" for name in LINEARS]
    )
    words = Tokenizer(models.WordLevel({str(word): word for word in range(32)}, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0")  # never used
    oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=data,
        recipe=recipe,
        num_calibration_samples=8,
    )
    out.mkdir()
    digests = {
        name: hashlib.sha256((values + 0.0).view(torch.uint8).numpy()).hexdigest()  # no -0.0
        for name, values in model.state_dict().items()
    }
    (out / "dense.json").write_text(json.dumps(digests, indent=1) + "\n")
    with contextlib.suppress(OSError):  # what it asks the hub once all is saved
        model.save_pretrained(out, save_compressed=True)
    if version("llmcompressor") == "0.1.0":  # which compresses only what its own class has loaded
        compress(model, out)


def compress(model: LlamaForCausalLM, out: Path) -> None:
    """What `SparseAutoModelForCausalLM.save_pretrained` of llm-compressor 0.1.0 does."""
    from compressed_tensors import BitmaskConfig, ModelCompressor
    from safetensors.torch import save_file

    chosen = BitmaskConfig(format="sparse-bitmask", global_sparsity=0.5, sparsity_structure="2:4")
    compressor = ModelCompressor(sparsity_config=chosen)
    tensors = {name: t for name, t in model.state_dict().items() if name != "lm_head.weight"}
    save_file(compressor.compress(model, tensors), out / "model.safetensors", {"format": "pt"})
    compressor.update_config(out)


def modelopt(model: LlamaForCausalLM, out: Path) -> None:
    """Magnitude pruning by NVIDIA's Model Optimizer."""
    import modelopt.torch.sparsity as mts

    mts.export(mts.sparsify(model, "sparse_magnitude")).save_pretrained(out)


def torchao(model: LlamaForCausalLM, out: Path) -> None:
    """Wanda by torchao, its masks made final."""
    from torchao.sparsity import WandaSparsifier

    sparsifier = WandaSparsifier(sparsity_level=0.5, semi_structured_block_size=4)
    layers = [name for name, _ in model.named_modules() if name.endswith(tuple(LINEARS))]
    sparsifier.prepare(model, [{"tensor_fqn": f"{name}.weight"} for name in layers])
    with torch.no_grad():
        model(torch.tensor(texts()))
    sparsifier.step()
    sparsifier.squash_mask()
    model.save_pretrained(out)


if __name__ == "__main__":
    tool, folder = sys.argv[1:]
    {"llmcompressor": llmcompressor, "modelopt": modelopt, "torchao": torchao}[tool](
        tiny_llama(), Path(folder)
    )
