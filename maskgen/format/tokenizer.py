"""The tokenizer of a model directory, the same for the torch path and for every engine.

It is what `tokenizer.json` says, with the tokens that the files beside it declare. Truncation and
padding inside that file are leftovers of training and are off. transformers makes its own
tokenizer of some models (it replaces the pre-tokenizer of qwen2's), which may split text otherwise.
Needs `tokenizers` alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from maskgen.format.json_file import read_json
from maskgen.format.model_directory import CONFIG_FILE, ModelDirectoryError
from maskgen.format.special_tokens import TOKENIZER_CONFIG_FILE, read_declared_tokens

TOKENIZER_FILE = "tokenizer.json"

_SURROGATE = re.compile("[\ud800-\udfff]")


class TextEncodingError(ValueError):
    """A text has no token ids, or some that the model has no embedding for."""


class ModelTokenizer:
    """Text to token ids and back.

    Attributes:
        backend: the `tokenizers.Tokenizer`.
        config: tokenizer_config.json; empty if there is none.
        special_tokens: name -> text of those that are set, such as `bos_token`.
        stray_tokens: id -> text of tokens that the model has no embedding for.
        vocab_size: config.json's number of embeddings; None if it states none.
        bos_token_id, eos_token_id, pad_token_id: None where they are not set.

    Raises:
        ModelDirectoryError: a file is missing or malformed; or the beginning or end of a text is a
            token that the model has no embedding for.
    """

    def __init__(self, directory: Path) -> None:
        self.backend = _read_tokenizer(directory / TOKENIZER_FILE)
        config_path = directory / TOKENIZER_CONFIG_FILE
        self.config = read_json(config_path, ModelDirectoryError) if config_path.is_file() else {}
        declared = read_declared_tokens(directory, self.config, self.backend)
        self.backend.add_tokens(list(declared.added))
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = self.config.get("split_special_tokens") is True
        self.special_tokens = declared.named
        self.bos_token_id, self.eos_token_id, self.pad_token_id = (
            self._named_id(name) for name in ("bos_token", "eos_token", "pad_token")
        )
        self.vocab_size = _vocab_size(directory / CONFIG_FILE)
        self.stray_tokens = self._find_stray_tokens()
        self._refuse_stray_edges(directory)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. Other threads run meanwhile.

        Args:
            text: of any length.
            add_special_tokens: put those around it that the tokenizer is set to.

        Raises:
            TextEncodingError: the text is no Unicode text, or holds a token that the model has no
                embedding for.
        """
        try:
            # The plain `encode` holds the interpreter lock for as long as it takes.
            (encoded,) = self.backend.encode_batch_fast(
                [text], add_special_tokens=add_special_tokens
            )
        except Exception as error:
            raise TextEncodingError(_encoding_message(text, error)) from None
        ids: list[int] = encoded.ids
        if self.stray_tokens:
            for token_id in self.stray_tokens.keys() & set(ids):
                raise TextEncodingError(f"the text holds {self._stray_message(token_id)}")
        return ids

    def token_starts(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Where in `text` each token of `encode` begins, in characters.

        Tokens of one character share its place; a token that stands around the text, and not in
        it, has that of the next one.

        Raises:
            TextEncodingError: the text is no Unicode text.
        """
        try:
            (encoded,) = self.backend.encode_batch([text], add_special_tokens=add_special_tokens)
        except Exception as error:
            raise TextEncodingError(_encoding_message(text, error)) from None
        starts, end = [], 0
        for (first, last), added in zip(encoded.offsets, encoded.special_tokens_mask, strict=True):
            # Some tokenizers leave out the space before a word: a token begins where the last ends.
            starts.append(end if added else min(first, end))
            end = end if added else max(end, last)
        return starts

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Text of `token_ids`."""
        text: str = self.backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def _named_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        found: int | None = None if token is None else self.backend.token_to_id(token)
        return found

    def _find_stray_tokens(self) -> dict[int, str]:
        """Tokens that the model has no embedding for."""
        if self.vocab_size is None:
            return {}
        vocabulary = self.backend.get_vocab(with_added_tokens=True)
        return {i: token for token, i in vocabulary.items() if i >= self.vocab_size}

    def _refuse_stray_edges(self, directory: Path) -> None:
        own = self.backend.encode_batch_fast([""], add_special_tokens=True)[0].ids
        for token_id in (*own, self.bos_token_id, self.eos_token_id):
            if token_id in self.stray_tokens:
                raise ModelDirectoryError(
                    f"{directory}: texts begin or end with {self._stray_message(token_id)}"
                )

    def _stray_message(self, token_id: int) -> str:
        return (
            f"the token {self.stray_tokens[token_id]!r}, whose id {token_id} is beyond the model's"
            f" vocabulary of {self.vocab_size} (config.json's vocab_size): the tokenizer has"
            " tokens that the model has no embedding for"
        )


def _read_tokenizer(path: Path) -> Tokenizer:
    if not path.is_file():
        raise ModelDirectoryError(
            f"{path} is missing: a fast tokenizer is needed; transformers'"
            " AutoTokenizer.from_pretrained and save_pretrained make one"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises no class of its own
        raise ModelDirectoryError(f"{path} is not a tokenizer: {error!s:.300}") from None
    if tokenizer.post_processor is not None:
        _check_templates(path, json.loads(tokenizer.post_processor.__getstate__()))
    return tokenizer


def _check_templates(path: Path, processor: Any) -> None:
    """Refuse a template that puts undefined tokens around a text: tokenizers would panic."""
    for part in processor.get("processors", ()):
        _check_templates(path, part)
    if processor.get("type") != "TemplateProcessing":
        return
    for piece in (*processor["single"], *processor["pair"]):
        token = piece.get("SpecialToken", {}).get("id")
        if token is not None and token not in processor["special_tokens"]:
            raise ModelDirectoryError(
                f"{path} puts {token!r:.100} around texts, which its special_tokens do not define"
            )


def _vocab_size(path: Path) -> int | None:
    if not path.is_file():
        return None
    config = read_json(path, ModelDirectoryError)
    nested = config.get("text_config")
    for fields in (config, nested if isinstance(nested, dict) else {}):
        if type(size := fields.get("vocab_size")) is int:
            return size
    return None


def _encoding_message(text: str, error: Exception) -> str:
    if found := _SURROGATE.search(text):
        return (
            f"the character at position {found.start()} is U+{ord(found[0]):04X}, half of a"
            " surrogate pair and no character by itself; send the whole character"
        )
    return f"the tokenizer cannot encode this text: {error}"
