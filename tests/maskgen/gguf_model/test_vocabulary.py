"""Tokenizers from the metadata of GGUF files."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskgen.format.text_files import template_files
from maskgen.format.tokenizer import ModelTokenizer
from maskgen.gguf_model.header import GgufError, GgufHeader
from maskgen.gguf_model.vocabulary import write_vocabulary
from tests.maskgen.gguf_model.tiny_gguf import vocabulary_of
from tests.tiny_model import SAMPLE_TEXT, make_tokenizer

PIECES = [
    "\u2581",
    *"abcdeh\n",
    "\u2581a",
    "ab",
    "abc",
    "bc",
    "cd",
    "\u2581ab",
    "he",
    "\u2581\u2581",
]
TEXT = st.text(alphabet=" abcdeh\u00e9\n<s>", max_size=24)


def tokenizer_of(metadata: dict[str, Any], directory: Path) -> ModelTokenizer:
    directory.mkdir(exist_ok=True)
    write_vocabulary(GgufHeader(Path("x.gguf"), metadata, {}), directory)
    return ModelTokenizer(directory)


def byte_level(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    make_tokenizer().save(str(tmp_path / "source.json"))
    return vocabulary_of(tmp_path / "source.json") | {
        f"tokenizer.{key.replace('__', '.')}": value for key, value in changes.items()
    }


def by_scores(**changes: Any) -> dict[str, Any]:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i * 7 % 15) for i in range(len(PIECES))],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(PIECES)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    } | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


def sentencepiece(text: str, metadata: dict[str, Any], *, prefix: bool) -> list[int]:
    """SentencePiece's BPE: the pair whose piece scores best is merged, the leftmost of equals."""
    tokens = metadata["tokenizer.ggml.tokens"]
    ids = {token: i for i, token in enumerate(tokens)}
    scores = metadata["tokenizer.ggml.scores"]
    parts = list((" " + text if prefix and text else text).replace(" ", "\u2581"))
    while True:
        pairs = [
            (-scores[ids[left + right]], place)
            for place, (left, right) in enumerate(itertools.pairwise(parts))
            if left + right in ids
        ]
        if not pairs:
            break
        place = min(pairs)[1]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    found = []
    for part in parts:
        single = [ids[part]] if part in ids else [3 + byte for byte in part.encode()]
        found += single
    return found


def test_a_byte_level_tokenizer_comes_back(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(byte_level(tmp_path), tmp_path / "out")
    original = make_tokenizer()
    for text in (SAMPLE_TEXT, "a  b\n\n c<|im_end|>d", "é漢\u0000", ""):
        assert tokenizer.encode(text) == original.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.special_tokens["eos_token"] == "<|im_end|>"
    assert tokenizer.pad_token_id == original.token_to_id("<|endoftext|>")


@pytest.mark.parametrize(("said", "pre", "expected"), [(True, "gpt-2", 1), (None, "llama-bpe", 1)])
def test_texts_begin_as_the_file_says(
    said: bool | None, pre: str, expected: int, tmp_path: Path
) -> None:
    metadata = byte_level(tmp_path, ggml__pre=pre, ggml__add_bos_token=said)
    if said is None:
        del metadata["tokenizer.ggml.add_bos_token"]
    tokenizer = tokenizer_of(metadata, tmp_path / "out")
    assert tokenizer.encode("a")[0] == tokenizer.bos_token_id
    assert tokenizer.encode("", add_special_tokens=True) == [tokenizer.bos_token_id] * expected


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("gpt-2", "in  2024", ["in", " ", " 2024"]),
        ("smollm", "in  2024", ["in", "  ", "2", "0", "2", "4"]),
        ("llama-bpe", "in  2024", ["in", " ", " ", "202", "4"]),
        ("qwen2", "it'S 20", ["it", "'S", " ", "2", "0"]),
        ("gpt-4o", "helloWorld's", ["hello", "World's"]),
        ("tekken", "helloWorld 12", ["hello", "World", " ", "1", "2"]),
    ],
)
def test_texts_are_split_as_the_model_learned_it(
    pre: str, text: str, words: list[str], tmp_path: Path
) -> None:
    tokenizer = tokenizer_of(byte_level(tmp_path, ggml__pre=pre), tmp_path / "out")
    pieces = tokenizer.backend.pre_tokenizer.pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in pieces] == words


@cache
def _scored(prefix: bool, folder: Path) -> tuple[ModelTokenizer, dict[str, Any]]:
    metadata = by_scores(add_space_prefix=prefix, add_bos_token=False)
    return tokenizer_of(metadata, folder / str(prefix)), metadata


@given(text=TEXT, prefix=st.booleans())
def test_scores_merge_as_in_sentencepiece(
    text: str, prefix: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tokenizer, metadata = _scored(prefix, tmp_path_factory.getbasetemp())
    text = text.replace("<s>", "")
    assert tokenizer.encode(text) == sentencepiece(text, metadata, prefix=prefix)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tokens_of_the_user_are_found_whole(tmp_path: Path) -> None:
    metadata = by_scores(add_bos_token=False, add_space_prefix=False)
    metadata["tokenizer.ggml.tokens"] += ["abcd", "   ", "[PAD277]"]
    metadata["tokenizer.ggml.scores"] += [0.0, 1.0, 0.0]
    metadata["tokenizer.ggml.token_type"] += [4, 4, 5]
    tokenizer = tokenizer_of(metadata, tmp_path)
    ids = metadata["tokenizer.ggml.tokens"].index
    assert tokenizer.encode("eabcd   a") == [ids("e"), ids("abcd"), ids("   "), ids("a")]
    assert tokenizer.backend.token_to_id("[PAD277]") is None


def test_gemma_merges_in_the_order_of_its_list(tmp_path: Path) -> None:
    metadata = by_scores(add_bos_token=False, add_space_prefix=False)
    plain = tokenizer_of(metadata, tmp_path / "plain").encode(" abc")
    metadata["general.architecture"] = "gemma3"
    listed = tokenizer_of(metadata, tmp_path / "gemma").encode(" abc")
    tokens = metadata["tokenizer.ggml.tokens"]
    assert [tokens[i] for i in listed] == ["\u2581a", "bc"]
    assert [tokens[i] for i in plain] == ["\u2581", "abc"]


def test_chat_templates_are_written(tmp_path: Path) -> None:
    metadata = byte_level(tmp_path, chat_templates=["tool_use", "../x"])
    metadata |= {"tokenizer.chat_template.tool_use": "T", "tokenizer.chat_template.../x": "X"}
    tokenizer_of(metadata, tmp_path / "out")
    names = [path.name for path in template_files(tmp_path / "out")]
    assert names == ["chat_template.jinja", "tool_use.jinja"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "bert"}, "'bert', expected gpt2 or llama"),
        ({"pre": "unheard-of"}, "'unheard-of'.*not understood"),
        ({"tokens": []}, "0 tokens"),
        ({"token_type": [1]}, "1 token types"),
        ({"merges": ["ab"]}, "'ab' is no pair"),
        ({"bos_token_id": 10**6}, "bos_token_id is 1000000"),
        ({"merges": ["q zq"]}, "`zq` out of vocabulary"),
    ],
)
def test_what_is_not_understood_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    changes = {f"ggml__{key}": value for key, value in changes.items()}
    with pytest.raises(GgufError, match=message):
        tokenizer_of(byte_level(tmp_path, **changes), tmp_path / "out")


def test_scores_are_needed_where_there_are_no_merges(tmp_path: Path) -> None:
    with pytest.raises(GgufError, match="275 tokens and 0 scores"):
        tokenizer_of(by_scores(scores=[]), tmp_path / "out")
