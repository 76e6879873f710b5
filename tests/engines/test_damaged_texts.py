"""Tokenizer and chat template with seeded damage: one line, or texts that come back."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path

from engines.errors import EngineDirectoryError, InvalidRequestError
from engines.text import TextCodec, TextStream
from tests.damage import check_error, damaged
from tests.engines.chat_template.templates import TEMPLATES
from tests.tiny_model import SAMPLE_TEXT, make_tokenizer

CONVERSATION = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]


def write(folder: Path) -> Path:
    """A small vocabulary, so that damage hits what matters; and everything that a codec reads."""
    folder.mkdir()
    make_tokenizer(bos=True).save(str(folder / "tokenizer.json"))
    files = {
        "tokenizer_config": {
            "bos_token": "<|im_start|>",
            "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "special": True},
            "added_tokens_decoder": {"1": {"content": "<|im_start|>", "special": True}},
            "extra_special_tokens": ["<a>"],
            "chat_template": [{"name": "default", "template": TEMPLATES["mistral"]}],
        },
        "special_tokens_map": {"pad_token": "<|endoftext|>", "additional_special_tokens": ["<b>"]},
        "added_tokens": {"<c>": 300},
        "generation_config": {"eos_token_id": [2, 0]},
        "config": {"vocab_size": 310, "eos_token_id": 2},
    }
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "chat_template.jinja").write_text(TEMPLATES["qwen3"])
    return folder


def use(codec: TextCodec) -> None:
    """What a server does with a codec."""
    try:
        ids = codec.encode(SAMPLE_TEXT)
        assert len(codec.token_starts(SAMPLE_TEXT)) == len(ids)
        stream = TextStream(codec.tokenizer, ids[:5])
        "".join([*map(stream.push, ids[5:]), stream.flush()])
        codec.render_chat(CONVERSATION)
    except InvalidRequestError as error:
        check_error(error, "")


def test_damaged_tokenizers_and_templates(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole")
    names = sorted(path.name for path in whole.iterdir())
    outcomes: Counter[str] = Counter()
    for seed in range(400):
        rng = random.Random(seed)
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        if rng.random() < 0.5:
            (folder / "chat_template.jinja").unlink()
        path = folder / rng.choice(names)
        path.write_bytes(damaged(whole / path.name, rng))
        try:
            codec = TextCodec(folder)
        except EngineDirectoryError as error:
            outcomes["refused"] += 1
            check_error(error, folder)
            continue
        outcomes["opened"] += 1
        use(codec)
    assert min(outcomes["refused"], outcomes["opened"]) > 50, outcomes
