"""What whoever builds an engine is told about its tokenizer."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from engines.cpu.build import build
from engines.directory.build import BuildRequest
from engines.directory.tokenizer_check import tokenizer_note
from engines.text import TextCodec
from maskgen.format.tokenizer import ModelTokenizer
from tests.tiny_model import make_tiny_llama, make_tokenizer


def write(directory: Path, model_type: str = "llama", **config: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    make_tokenizer().save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", **config}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    size = make_tokenizer().get_vocab_size()
    model = {"model_type": model_type, "vocab_size": size}
    (directory / "config.json").write_text(json.dumps(model))
    return directory


def note(directory: Path) -> str:
    return tokenizer_note(directory, TextCodec(directory))


def test_the_same_tokens(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    directory = write(tmp_path, chat_template=template)
    expected = "tokenizer: tokenizer.json, the same tokens and prompts as transformers'"
    assert note(directory).startswith(expected)


def test_a_tokenizer_that_transformers_replaces(tmp_path: Path) -> None:
    directory = write(tmp_path, "qwen2")
    line = note(directory)
    assert "as everywhere in twofour; transformers' Qwen2Tokenizer makes other tokens of" in line
    text = ast.literal_eval(line.split("such as ")[1])
    assert TextCodec(directory).encode(text) == ModelTokenizer(directory).encode(text)


def test_other_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write(tmp_path, chat_template="{{ messages[0].content }}")
    codec = TextCodec(directory)
    monkeypatch.setattr(codec, "render_chat", lambda messages: "something else")
    assert "but other prompts of a conversation" in tokenizer_note(directory, codec)


def test_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "not compared with transformers, which is not installed" in note(write(tmp_path))


def test_a_model_that_transformers_does_not_know(tmp_path: Path) -> None:
    auto_map = {"AutoTokenizer": ["code.New", None]}
    directory = write(tmp_path, "new", tokenizer_class="New", auto_map=auto_map)
    (directory / "code.py").write_text("open('ran', 'w')\n")
    line = note(directory)
    assert "not compared with transformers, which cannot load it: " in line
    assert "\n" not in line
    assert not Path("ran").exists()


def test_tokens_without_an_embedding_are_counted(tmp_path: Path) -> None:
    directory = write(tmp_path, extra_special_tokens=["<a>", "<b>"])
    size = make_tokenizer().get_vocab_size()
    assert f"2 of its tokens, such as '<a>' ({size}), have no embedding" in note(directory)


def test_a_build_says_so(tmp_path: Path) -> None:
    notes: list[str] = []
    model = make_tiny_llama(tmp_path / "model")
    build(BuildRequest(model, "tiny", {}, tmp_path / "out", note=notes.append))
    assert notes[0].startswith("tokenizer: tokenizer.json, the same tokens and prompts as")
