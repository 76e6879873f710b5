"""A model directory's tokenizer: transformers' tokens, whatever its files declare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, processors
from transformers import AutoTokenizer

from maskgen.format.model_directory import ModelDirectoryError
from maskgen.format.tokenizer import ModelTokenizer, TextEncodingError
from tests.tiny_model import SAMPLE_TEXT, make_tokenizer

NAMES = ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "image_token"]
WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<own>", "<new>", "the", "river"]
TEXTS = st.lists(
    st.sampled_from([*WORDS, " ", "\n", "été", "mill.", "  ", "\ufffd"]) | st.text(max_size=3),
    max_size=12,
).map("".join)

TOKEN = st.sampled_from(WORDS)
ADDED = st.fixed_dictionaries(
    {"content": TOKEN},
    optional={name: st.booleans() for name in ("lstrip", "rstrip", "normalized", "special")},
)
NAMED = st.dictionaries(
    st.sampled_from(NAMES),
    st.none() | TOKEN | ADDED.map(lambda token: {"__type": "AddedToken", **token}),
    max_size=4,
)
EXTRA = st.lists(TOKEN, max_size=2) | st.dictionaries(st.just("audio_token"), TOKEN, max_size=1)
CONFIG = st.tuples(
    NAMED,
    st.fixed_dictionaries(
        {},
        optional={
            "added_tokens_decoder": st.dictionaries(
                st.integers(0, 3).map(str), ADDED.map(lambda token: {"special": True, **token})
            ),
            "additional_special_tokens": st.lists(TOKEN, max_size=2),
            "extra_special_tokens": EXTRA,
            "split_special_tokens": st.booleans(),
        },
    ),
).map(lambda parts: {"tokenizer_class": "PreTrainedTokenizerFast", **parts[0], **parts[1]})
SPECIAL_MAP = st.none() | st.dictionaries(
    st.sampled_from(NAMES), TOKEN | ADDED.map(lambda token: {"lstrip": False, **token}), max_size=3
)
ADDED_MAP = st.none() | st.dictionaries(TOKEN, st.integers(0, 305), max_size=2)


def write(directory: Path, backend: Tokenizer | None = None, **files: Any) -> Path:
    """A model directory without a model; files by name without the suffix."""
    directory.mkdir(parents=True, exist_ok=True)
    (backend or make_tokenizer()).save(str(directory / "tokenizer.json"))
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


def own_tokenizer() -> Tokenizer:
    tokenizer = make_tokenizer(bos=True)
    tokenizer.add_tokens([AddedToken("<own>", special=False, lstrip=True)])
    return tokenizer


@settings(deadline=None, max_examples=100)
@example(
    config={"image_token": {"__type": "AddedToken", "content": "<own>"}, "mark_token": "the"},
    special={"image_token": "<new>", "mark_token": "river"},
    added=None,
    texts=["the <own> river<new>"],
)
@given(
    config=CONFIG,
    special=SPECIAL_MAP,
    added=ADDED_MAP,
    texts=st.lists(TEXTS, min_size=1, max_size=5),
)
def test_tokens_are_those_of_transformers(
    tmp_path_factory: pytest.TempPathFactory,
    config: dict[str, Any],
    special: dict[str, Any] | None,
    added: dict[str, int] | None,
    texts: list[str],
) -> None:
    files = {"tokenizer_config": config, "special_tokens_map": special, "added_tokens": added}
    present = {name: content for name, content in files.items() if content is not None}
    directory = write(tmp_path_factory.mktemp("t"), own_tokenizer(), **present)
    reference = AutoTokenizer.from_pretrained(directory)
    ours = ModelTokenizer(directory)
    assert ours.special_tokens == reference.special_tokens_map
    assert ours.bos_token_id == reference.bos_token_id
    assert ours.eos_token_id == reference.eos_token_id
    assert ours.pad_token_id == reference.pad_token_id
    for text in texts:
        for extra in (True, False):
            ids = ours.encode(text, add_special_tokens=extra)
            assert ids == reference(text, add_special_tokens=extra)["input_ids"]
            for skip in (True, False):
                assert ours.decode(ids, skip_special_tokens=skip) == reference.decode(
                    ids, skip_special_tokens=skip
                )


@pytest.mark.parametrize("leftover", ["truncation", "padding"])
def test_leftovers_of_training_are_off(leftover: str, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    expected = tokenizer.encode(SAMPLE_TEXT).ids
    if leftover == "truncation":
        tokenizer.enable_truncation(8)
    else:
        tokenizer.enable_padding(length=2000, pad_id=0, pad_token="<|endoftext|>")
    ours = ModelTokenizer(write(tmp_path, tokenizer))
    assert ours.encode(SAMPLE_TEXT) == expected
    assert ours.special_tokens == AutoTokenizer.from_pretrained(tmp_path).special_tokens_map


@given(text=TEXTS, bos=st.booleans())
def test_a_token_begins_where_its_text_does(
    tmp_path_factory: pytest.TempPathFactory, text: str, bos: bool
) -> None:
    directory = write(tmp_path_factory.mktemp("t"), make_tokenizer(bos=bos))
    tokenizer = ModelTokenizer(directory)
    ids, starts = tokenizer.encode(text), tokenizer.token_starts(text)
    assert len(ids) == len(starts)
    assert starts == sorted(starts)
    for token_id, start in list(zip(ids, starts, strict=True))[bos:]:
        token = tokenizer.decode([token_id])
        assert "\ufffd" in token or text[start:].startswith(token)
    assert not bos or starts[0] == 0


def test_tokens_that_leave_out_spaces_begin_with_them(tmp_path: Path) -> None:
    backend = make_tokenizer()
    pair = [("<|im_start|>", 1), ("<|im_end|>", 2)]
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single="<|im_start|> $A <|im_end|>", special_tokens=pair),
        ]
    )
    tokenizer = ModelTokenizer(write(tmp_path, backend))
    text = "the river  é mill"
    starts = tokenizer.token_starts(text)
    tokens = [tokenizer.decode([token_id]) for token_id in tokenizer.encode(text)]
    assert (starts[0], starts[1], starts[-1]) == (0, 0, len(text))
    assert all(
        text[s:].startswith(t)
        for s, t in zip(starts[1:-1], tokens[1:-1], strict=True)
        if "\ufffd" not in t
    )


def test_half_a_surrogate_pair_is_named() -> None:
    tokenizer = ModelTokenizer.__new__(ModelTokenizer)
    tokenizer.backend, tokenizer.stray_tokens = make_tokenizer(), {}
    with pytest.raises(TextEncodingError, match=r"position 2 is U\+D83D"):
        tokenizer.encode("ab\ud83d")


def test_a_token_without_an_embedding_is_refused_by_name(tmp_path: Path) -> None:
    size = make_tokenizer().get_vocab_size()
    config = {"pad_token": "<pad>", "additional_special_tokens": ["<image>"]}
    directory = write(tmp_path, config={"vocab_size": size}, tokenizer_config=config)
    tokenizer = ModelTokenizer(directory)
    assert tokenizer.stray_tokens == {size: "<pad>", size + 1: "<image>"}
    assert tokenizer.encode("the river") == make_tokenizer().encode("the river").ids
    with pytest.raises(
        TextEncodingError, match=f"'<image>', whose id {size + 1} is beyond .* of {size} "
    ):
        tokenizer.encode("the <image> river")


@pytest.mark.parametrize("name", ["bos_token", "eos_token"])
@pytest.mark.parametrize("nested", [True, False])
def test_an_end_or_beginning_without_an_embedding_is_refused(
    name: str, nested: bool, tmp_path: Path
) -> None:
    size = make_tokenizer().get_vocab_size()
    config = {"text_config": {"vocab_size": size}} if nested else {"vocab_size": size}
    directory = write(tmp_path, config=config, tokenizer_config={name: "<extra>"})
    with pytest.raises(ModelDirectoryError, match=f"'<extra>', whose id {size} is beyond"):
        ModelTokenizer(directory)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"tokenizer": {"model": 1}}, "tokenizer.json is not a tokenizer"),
        ({"tokenizer_config": []}, "tokenizer_config.json holds list"),
        ({"tokenizer_config": {"bos_token": 5}}, "bos_token is 5"),
        ({"tokenizer_config": {"bos_token": {"content": 5}}}, "bos_token is"),
        ({"tokenizer_config": {"extra_special_tokens": 5}}, "extra_special_tokens is 5"),
        ({"tokenizer_config": {"extra_special_tokens": [5]}}, "extra_special_tokens is 5"),
        ({"tokenizer_config": {"added_tokens_decoder": []}}, "added_tokens_decoder"),
        ({"tokenizer_config": {"added_tokens_decoder": {"x": {}}}}, "added_tokens_decoder"),
        ({"tokenizer_config": {"added_tokens_decoder": {"1": {}}}}, "added_tokens_decoder"),
        ({"special_tokens_map": {"eos_token": []}}, "eos_token is"),
        ({"added_tokens": {"<x>": "1"}}, "added_tokens.json does not map"),
    ],
)
def test_a_malformed_file_is_one_line(files: dict[str, Any], reason: str, tmp_path: Path) -> None:
    write(tmp_path, **files)
    with pytest.raises(ModelDirectoryError, match=reason) as refused:
        ModelTokenizer(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_directory_without_a_fast_tokenizer_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ModelDirectoryError, match="save_pretrained"):
        ModelTokenizer(tmp_path)
