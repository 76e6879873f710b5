"""Engines of a model with random weights and a real one's shape.

    python -m benchmarks.engine.shaped_model OUT [--layers N] [--values int8]
    twofour bench engine --sparse OUT/sparse --dense OUT/dense --result bench-engine-1b

What a step costs depends on shapes, not on values, so random weights show the speed and the memory
of a size whose weights are not at hand. Everything is written tensor by tensor.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import ml_dtypes
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from engines.cpu.build import build
from engines.directory.build import BuildRequest
from engines.directory.decoder_config import decoder_config, read_decoder_config
from engines.directory.tensor_file import TensorSpec, TensorWriter
from engines.quantisation.options import ValueOptions, Values
from maskgen.format.digests import base_digest
from maskgen.format.json_file import write_json
from maskgen.format.mask import Mask
from maskgen.format.mask_file import write_mask

LLAMA_1B: Mapping[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "max_position_embeddings": 4096,  # 131,072 in the real one; speed does not depend on it
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "bos_token_id": 0,
    "eos_token_id": 1,
    "dtype": "bfloat16",
}
"""The shape of Llama-3.2-1B."""

_BF16 = np.dtype(ml_dtypes.bfloat16)
_SEED = 0


def write_model(directory: Path, config: Mapping[str, Any]) -> Path:
    """A Hugging Face directory with random bf16 weights and a tokenizer of single bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", config)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    shapes = decoder_config(config).tensor_shapes()
    specs = {name: TensorSpec(_BF16, shape) for name, shape in shapes.items()}
    rng = np.random.default_rng(_SEED)
    with TensorWriter(directory / "model.safetensors", specs, {"format": "pt"}) as writer:
        for name, shape in shapes.items():
            writer.write(name, _random(rng, shape))
    return directory


def write_random_mask(model: Path, out: Path) -> Path:
    """A mask of every linear layer of the decoder, its placements drawn at random."""
    rng = np.random.default_rng(_SEED)
    codes = {
        name: rng.integers(0, 6, (n, k // 4), dtype=np.uint8)
        for name, (n, k) in read_decoder_config(model).linear_shapes().items()
    }
    write_mask(out, Mask(codes, base_digest(model), "random", "none", None, _SEED))
    return out


def build_engines(
    out: Path, config: Mapping[str, Any], values: Values = "bf16"
) -> tuple[Path, Path]:
    """Build `out/sparse` (sealed) and `out/dense` unless they are there; gives both.

    Those of other values are `out/sparse-int8` and so on. The model and the mask are removed once
    they have been packed: they are as large again.
    """
    suffix = "" if values == "bf16" else f"-{values}"
    arms = (out / f"sparse{suffix}", out / f"dense{suffix}")
    options = ValueOptions(values=values)
    if all((arm / "engine.json").is_file() for arm in arms):
        return arms
    work = out / f"work-{os.getpid()}"
    try:
        model = write_model(work / "model", config)
        mask = write_random_mask(model, work / "mask.safetensors")
        for arm, masks in zip(arms, ({"random": mask}, {}), strict=True):
            request = BuildRequest(
                model, "shaped", masks, arm, sealed=bool(masks), overwrite=True, values=options
            )
            build(request)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return arms


def _random(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    if len(shape) == 1:
        return np.ones(shape, _BF16)
    values = rng.standard_normal(shape, dtype=np.float32)
    values *= 0.02
    return values.astype(_BF16)


def main() -> None:
    """Build both engine directories."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=LLAMA_1B["num_hidden_layers"])
    parser.add_argument("--values", choices=get_args(Values), default="bf16")
    given = parser.parse_args()
    config = {**LLAMA_1B, "num_hidden_layers": given.layers}
    for arm in build_engines(given.out, config, given.values):
        size = sum(file.stat().st_size for file in arm.iterdir() if file.is_file())
        print(f"{arm}: {size / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
