from __future__ import annotations

from pathlib import Path

import pytest

from maskgen.format.tokenizer import ModelTokenizer
from maskgen.texts import self_text
from maskgen.texts.self_text import write_self_texts
from tests.tiny_model import make_tiny_llama


def test_the_model_writes_the_same_text_for_the_same_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(self_text, "_DOCUMENT_TOKENS", 24)  # a batch of 16 is more than enough

    directory = make_tiny_llama(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = ModelTokenizer(directory)
    first, again, other = (
        write_self_texts(model, tokenizer, tokens=64, seed=seed) for seed in (1, 1, 2)
    )
    assert first.digest == again.digest != other.digest
    assert len(tokenizer.encode("".join(first.texts))) >= 64
