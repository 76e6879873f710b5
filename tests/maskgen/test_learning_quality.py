"""Masks that are learned in the test beat the prior that they start from, on held-out text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from maskgen.format.mask import Mask
from maskgen.format.pattern import TWO_FOUR
from maskgen.format.placements import keep_from_codes
from maskgen.format.tokenizer import ModelTokenizer
from maskgen.learn import LearnRequest, learn, parse_config
from maskgen.prune import PruneSettings, prune
from maskgen.texts.text_sets import TextSet
from maskgen.texts.windows import token_windows
from maskgen.torch_model import load_model
from tests.tiny_model import make_tiny_llama

LENGTH = 32
_LETTERS = "abcdefgh"
METHODS = {
    "maskllm": {"steps": 60, "learning_rate": 1e-2, "batch_size": 8},
    "roi": {"steps": 60, "learning_rate": 1e-2, "batch_size": 8, "scale": (0.1, 0.002)},
    "maskpro": {"steps": 300, "batch_size": 16, "windows": 64, "strength": 4.0},
}


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


def held_out_loss(model_dir: Path, mask: Mask | None) -> float:
    model = load_model(model_dir, "fp32", "cpu")
    with torch.no_grad():
        for name, codes in (mask.codes if mask else {}).items():
            weight = model.get_submodule(name).weight
            weight *= torch.from_numpy(keep_from_codes(codes, TWO_FOUR)).float()
        ids = torch.from_numpy(
            token_windows(ModelTokenizer(model_dir), sentences(99, 200).texts, LENGTH)
        ).long()
        logits = model(input_ids=ids).logits[:, :-1]
        return float(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, really trained on the small language."""
    torch.set_num_threads(1)
    directory = make_tiny_llama(
        tmp_path_factory.mktemp("trained") / "model", initializer_range=0.05
    )
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


@pytest.fixture(scope="module")
def prior(trained: Path) -> Mask:
    return prune(trained, None, PruneSettings("magnitude")).mask


@pytest.mark.parametrize("method", METHODS)
def test_learned_masks_beat_their_magnitude_prior_on_held_out_text(
    trained, prior, tmp_path, method
):
    settings = {"sequence_length": LENGTH, "checkpoint_every": 1000, **METHODS[method]}
    config = parse_config(method, settings)
    request = LearnRequest(method, config, tmp_path / "run")
    result = learn(trained, sentences(0, 2000), prior, request, Console(quiet=True))
    dense = held_out_loss(trained, None)
    before, after = held_out_loss(trained, prior), held_out_loss(trained, result.mask)
    assert dense < before - 0.03, "the prior must have something to lose"
    share = 0.1 if method == "maskpro" else 0.3
    assert after < before - share * (before - dense)
    assert 0 < result.changed < 0.8
