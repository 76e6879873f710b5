"""A random model of a few hundred kilobytes, in the form of a Hugging Face directory.

`make_tiny_llama` writes everything a real model directory has: bf16 safetensors, config,
generation config, and a byte-level BPE tokenizer with a chat template. The weights are random but
not degenerate: norms are not all one, biases not all zero, and logits are spread enough that
greedy decoding has clear margins.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

SAMPLE_TEXT = """\
The river carried the timber down to the mill, where the men sorted it by length and weight.
In winter the water froze, and the wheel stood still until the thaw came back in March.
def add(left: int, right: int) -> int:
    return left + right
Deux hommes marchaient dans la forêt; le plus âgé portait une lanterne.
"""
"""Text that the tokenizer is trained on, and that tests may use as a corpus."""

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_tiny_llama(
    directory: Path, *, architecture: str = "llama", seed: int = 0, bos: bool = False, **config: Any
) -> Path:
    """Write a random decoder and its tokenizer to `directory` and return it.

    Args:
        directory: created if missing.
        architecture: the `model_type`: `llama`, `mistral`, `qwen2`, `qwen3`, ...
        seed: of the weights; other seeds give other models with the same tokenizer.
        bos: let the tokenizer put `<|im_start|>` before every text, as Llama's does.
        config: overrides of the `transformers` configuration (hidden 64, intermediate 128, 2
            layers, 4 heads, 2 key-value heads, context 512, tied embeddings by default).
    """
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(bos=bos)
    settings: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "vocab_size": tokenizer.get_vocab_size(),
        "tie_word_embeddings": True,
        "initializer_range": 0.3,
        "bos_token_id": tokenizer.token_to_id("<|im_start|>"),
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
    }
    if architecture == "qwen3":
        settings["head_dim"] = 16
    if architecture == "mistral":
        settings["sliding_window"] = None
    configuration = AutoConfig.for_model(architecture, **{**settings, **config})
    random_model(configuration, seed).save_pretrained(directory)
    write_tokenizer(directory, tokenizer, bos=bos)
    return directory


def write_tiny_model(directory: Path, config: Mapping[str, Any], *, seed: int = 0) -> Path:
    """Write a random decoder whose `config.json` is `config` as it is, and its tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    model = random_model(AutoConfig.from_pretrained(directory), seed)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if any(".experts." in name for name in weights):
        model.save_pretrained(directory)  # which takes fused experts apart
        (directory / "config.json").write_text(json.dumps(config))
    else:
        if model.config.tie_word_embeddings:
            del weights["lm_head.weight"]
        save_file(weights, directory / "model.safetensors", {"format": "pt"})
    write_tokenizer(directory, make_tokenizer(), bos=False)
    return directory


def random_model(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """A random bf16 model, whose norms and biases are no defaults."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias") or "norm" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(torch.bfloat16)


def make_tokenizer(*, bos: bool = False) -> Tokenizer:
    """A byte-level BPE tokenizer of about 300 tokens that encodes any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([SAMPLE_TEXT], trainer)
    if bos:
        token = "<|im_start|>"
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{token} $A", special_tokens=[(token, tokenizer.token_to_id(token))]
        )
    return tokenizer


def write_tokenizer(directory: Path, tokenizer: Tokenizer, *, bos: bool) -> None:
    """Write tokenizer and chat template."""
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "add_bos_token": bos,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
