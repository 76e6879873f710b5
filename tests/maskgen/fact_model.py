"""A small language of facts, and a tiny model that is really trained on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from maskgen.format.tokenizer import ModelTokenizer
from maskgen.texts.text_sets import TextSet
from maskgen.texts.windows import token_windows
from maskgen.torch_model import load_model
from tests.tiny_model import make_tiny_llama

LENGTH = 32
_LETTERS = "abcdefgh"


def sentences(seed: int, count: int) -> TextSet:
    """A small language of facts to remember: subject and verb decide the object, at random."""
    facts = np.random.default_rng(7).integers(0, 8, (8, 8))
    random = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        pairs = random.integers(0, 8, (8, 2))
        texts.append(
            " ".join(f"{_LETTERS[i]}{_LETTERS[j]}={_LETTERS[facts[i, j]]}" for i, j in pairs)
        )
    return TextSet.of("facts", texts)


def held_out_loss(model_dir: Path, model: nn.Module) -> float:
    """Mean loss on sentences that no model was trained on, nats a token."""
    with torch.no_grad():
        ids = torch.from_numpy(
            token_windows(ModelTokenizer(model_dir), sentences(99, 200).texts, LENGTH)
        ).long()
        logits = model(input_ids=ids).logits[:, :-1]
        return float(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))


def train_on_facts(directory: Path) -> Path:
    """Write the tiny model, trained on the small language, to `directory` and return it."""
    torch.set_num_threads(1)
    make_tiny_llama(directory, initializer_range=0.05)
    model = load_model(directory, "fp32", "cpu")
    model.requires_grad_(True)
    windows = token_windows(ModelTokenizer(directory), sentences(0, 2000).texts, LENGTH)
    random = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(200):
        ids = torch.from_numpy(windows[random.integers(len(windows), size=16)]).long()
        logits = model(input_ids=ids).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.to(torch.bfloat16).save_pretrained(directory)
    return directory
