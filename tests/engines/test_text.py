"""Text to token ids and back: incremental decoding, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers

from engines.errors import EngineDirectoryError, InvalidRequestError
from engines.text import TextCodec, TextStream
from tests.tiny_model import make_tokenizer

BYTE_LEVEL = make_tokenizer()


def sentencepiece_like() -> Tokenizer:
    """Words that begin with a mark, and single bytes where a word is unknown, as Llama 2's."""
    words = ["<s>", "\u2581", "\u2581the", "\u2581river", "ran", "a", "\u2581a", "."]
    vocab = {token: i for i, token in enumerate([*words, *(f"<0x{b:02X}>" for b in range(256))])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


SENTENCEPIECE = sentencepiece_like()
WORDS = len(SENTENCEPIECE.get_vocab()) - 256
ids_of_bytes = st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() - 1), max_size=60)


def streamed(tokenizer: Tokenizer, prompt: list[int], generated: list[int]) -> list[str]:
    stream = TextStream(tokenizer, prompt)
    return [*(stream.push(token_id) for token_id in generated), stream.flush()]


@settings(deadline=None)
@given(generated=ids_of_bytes, prompt=st.sampled_from(["", "The mill", "é", "<|im_end|>\n"]))
def test_all_pieces_are_what_decoding_at_once_gives(generated: list[int], prompt: str) -> None:
    pieces = streamed(BYTE_LEVEL, BYTE_LEVEL.encode(prompt).ids, generated)
    assert "".join(pieces) == BYTE_LEVEL.decode(generated, skip_special_tokens=True)


@settings(deadline=None)
@given(text=st.text(st.sampled_from("aé€🌶\u0301 \n"), max_size=30), prompt=st.booleans())
def test_characters_come_whole_and_as_soon_as_they_are_complete(text: str, prompt: bool) -> None:
    before = BYTE_LEVEL.encode("The river ").ids if prompt else []
    ids = BYTE_LEVEL.encode(text).ids
    pieces = streamed(BYTE_LEVEL, before, ids)
    assert "\ufffd" not in "".join(pieces)
    for count in range(len(ids) + 1):
        so_far = BYTE_LEVEL.decode(ids[:count], skip_special_tokens=True)
        if not so_far.endswith("\ufffd"):
            assert "".join(pieces[:count]) == so_far


@settings(deadline=None)
@given(text=st.text(max_size=12), cut=st.integers(1, 3), generated=ids_of_bytes)
def test_a_prompt_that_ends_within_a_character_does_not_come_back(
    text: str, cut: int, generated: list[int]
) -> None:
    prompt = BYTE_LEVEL.encode(text + "🌶").ids[:-cut]
    pieces = streamed(BYTE_LEVEL, prompt, generated)
    assert "".join(pieces) == BYTE_LEVEL.decode(generated, skip_special_tokens=True)


def test_a_prompt_that_ends_with_the_replacement_character_does_not_come_back() -> None:
    prompt = BYTE_LEVEL.encode("Hello there \ufffd").ids
    assert streamed(BYTE_LEVEL, prompt, BYTE_LEVEL.encode(" you").ids)[0] != ""
    assert "".join(streamed(BYTE_LEVEL, prompt, BYTE_LEVEL.encode(" you").ids)) == " you"


def test_what_can_no_longer_become_a_character_is_not_held_back() -> None:
    continuation, pepper = BYTE_LEVEL.encode("🌶").ids[-1], BYTE_LEVEL.encode("🌶").ids
    pieces = streamed(BYTE_LEVEL, [], [continuation] * 205 + pepper)
    assert "".join(pieces) == "\ufffd" * 205 + "🌶"
    assert max(map(len, pieces)) < 40


def test_the_first_word_keeps_its_space_after_a_prompt() -> None:
    ids = [SENTENCEPIECE.token_to_id(t) for t in ("\u2581the", "\u2581river", "ran", "\u2581a")]
    assert streamed(SENTENCEPIECE, ids, ids) == [" the", " river", "ran", " a", ""]
    assert streamed(SENTENCEPIECE, [], ids)[0] == "the"
    assert streamed(SENTENCEPIECE, [SENTENCEPIECE.token_to_id("<s>")], ids)[0] == "the"
    pepper = [SENTENCEPIECE.token_to_id(f"<0x{byte:02X}>") for byte in "🌶".encode()]
    assert streamed(SENTENCEPIECE, ids + pepper[:-1], ids)[:2] == [" the", " river"]
    assert streamed(SENTENCEPIECE, ids + pepper * 20, ids)[:2] == [" the", " river"]


@settings(deadline=None)
@given(generated=st.lists(st.integers(0, WORDS - 1), max_size=60))
def test_long_texts_of_words_are_decoded_as_at_once(generated: list[int]) -> None:
    pieces = streamed(SENTENCEPIECE, [2], generated)
    whole = SENTENCEPIECE.decode([2, *generated], skip_special_tokens=True)
    assert "".join(pieces) == whole.removeprefix("the")


@settings(deadline=None)
@given(text=st.text("🌶€ éa", max_size=40))
def test_characters_of_single_bytes_are_decoded_as_at_once(text: str) -> None:
    ids = [SENTENCEPIECE.token_to_id(f"<0x{byte:02X}>") for byte in text.encode()]
    pieces = streamed(SENTENCEPIECE, [2], ids)
    assert "".join(pieces) == text


def test_decoding_takes_as_long_for_late_tokens_as_for_early_ones() -> None:
    """The stream looks at a bounded number of ids."""
    stream = TextStream(BYTE_LEVEL, [])
    looked_at = []
    decode = stream._decode
    stream._decode = lambda ids: looked_at.append(len(ids)) or decode(ids)  # type: ignore
    for token_id in BYTE_LEVEL.encode("The river carried é🌶 the timber. " * 20).ids:
        stream.push(token_id)
    assert max(looked_at) < 60


@settings(deadline=None)
@given(text=st.text(st.sampled_from("aé€🌶 \n"), max_size=20), special=st.booleans())
def test_positions_are_where_tokens_begin(text: str, special: bool) -> None:
    ids = BYTE_LEVEL.encode(text + ("<|im_end|>x" if special else "")).ids
    stream, places = TextStream(BYTE_LEVEL, [], skip_special_tokens=False), []
    for token_id in ids:
        places.append(stream.position)
        stream.push(token_id)
    whole = BYTE_LEVEL.decode(ids, skip_special_tokens=False)
    assert stream.position == len(whole)
    for count, (place, token_id) in enumerate(zip(places, ids, strict=True)):
        before = BYTE_LEVEL.decode(ids[:count], skip_special_tokens=False)
        assert whole[:place] == before.rstrip("\ufffd")
        token = BYTE_LEVEL.decode([token_id], skip_special_tokens=False)
        assert "\ufffd" in token or whole[place:].startswith(token)


def test_a_skipped_token_takes_no_place() -> None:
    stream = TextStream(BYTE_LEVEL, [])
    for token_id in BYTE_LEVEL.encode("a<|im_end|>b").ids:
        stream.push(token_id)
    assert stream.position == 2


def write(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    make_tokenizer().save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    return directory


def test_half_a_surrogate_pair_is_an_invalid_request(tmp_path: Path) -> None:
    codec = TextCodec(write(tmp_path))
    with pytest.raises(InvalidRequestError, match=r"position 1 is U\+DE00, half of a surrogate"):
        codec.encode("a\ude00")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": {"type": "BPE"}}', "[" * 100_000])
def test_a_damaged_tokenizer_is_one_line(content: str, tmp_path: Path) -> None:
    directory = write(tmp_path)
    (directory / "tokenizer.json").write_text(content)
    with pytest.raises(EngineDirectoryError, match=r"tokenizer\.json") as refused:
        TextCodec(directory)
    assert "\n" not in str(refused.value)


def test_an_unknown_eos_is_none(tmp_path: Path) -> None:
    directory = write(tmp_path)
    (directory / "tokenizer_config.json").unlink()
    assert TextCodec(directory).eos_token_ids == ()
    assert TextCodec(directory).bos_token_id is None
