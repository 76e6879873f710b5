"""Whether a model's tokens are those that transformers makes.

twofour tokenizes with tokenizer.json everywhere. transformers builds its own tokenizer for some
models (it replaces qwen2's pre-tokenizer, for one), so the same text may become other tokens there;
whoever builds an engine is told.
"""

from __future__ import annotations

import random
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engines.errors import InvalidRequestError
from engines.text import TextCodec

_RANDOM_TEXTS = 64
_ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyzABCXYZ",
    "0123456789",
    " \t\n\r\u00a0\u2003",
    ".,:;!?'\"()[]{}<>|/\\-_+=*&^%$#@~`",
    "àéîõüßÅøœ\u0301\u0308",
    "дом漢字かなقلم",
    "🌶👍🏽\u200d\ufffd",
)
_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "I'm sure they've said we'll GO; don't CAN'T",
    "def f(x):\n    return x ** 2  # twice\n\n\n",
    "in 1999 it was 3.14159, then 1,000,000 and 0x7f",
    "   leading and trailing   ",
    "na\u0131\u0308ve cafe\u0301 \ufb01nd \u1e9b\u0323",
    "",
)
_CONVERSATION = (
    {"role": "user", "content": "Hello there"},
    {"role": "assistant", "content": "Hi!"},
    {"role": "user", "content": " 1 + 1 = ? "},
)


def tokenizer_note(directory: Path, codec: TextCodec) -> str:
    """One line on the tokenizer of a model directory, for whoever builds an engine from it."""
    note = f"tokenizer: tokenizer.json, {_comparison(directory, codec)}"
    if stray := codec.stray_tokens:
        token_id = min(stray)
        note += (
            f"; {len(stray)} of its tokens, such as {stray[token_id]!r} ({token_id}), have no"
            " embedding: texts that hold them are refused"
        )
    return note


def _comparison(directory: Path, codec: TextCodec) -> str:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        return "not compared with transformers, which is not installed"
    try:
        with _quiet_transformers():
            theirs: Any = AutoTokenizer.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # whatever its tokenizer classes raise
        reason = textwrap.shorten(str(error), 200) or type(error).__name__
        return f"not compared with transformers, which cannot load it: {reason}"
    name, texts = type(theirs).__name__, _texts(codec)
    differing = [text for text in texts if _tokens(codec, text) != _their_tokens(theirs, text)]
    if differing:
        shown = min(differing, key=len)
        return (
            f"as everywhere in twofour; transformers' {name} makes other tokens of"
            f" {len(differing)} of {len(texts)} texts, such as {shown!r}"
        )
    if _prompt(codec) != _their_prompt(theirs):
        return f"the same tokens as transformers' {name}, but other prompts of a conversation"
    return f"the same tokens and prompts as transformers' {name}"


def _texts(codec: TextCodec) -> list[str]:
    """Texts in which tokenizers are likely to differ, the same ones every time."""
    rng = random.Random(0)
    texts = list(_TEXTS)
    for _ in range(_RANDOM_TEXTS):
        pieces = (rng.choices(rng.choice(_ALPHABETS), k=rng.randint(1, 4)) for _ in range(8))
        texts.append("".join("".join(piece) for piece in pieces))
    for token in codec.special_tokens.values():
        texts.append(f"a {token} b{token}c\n{token}")
    return texts


def _tokens(codec: TextCodec, text: str) -> list[list[int]] | None:
    try:
        return [codec.encode(text, add_special_tokens=special) for special in (True, False)]
    except InvalidRequestError:
        return None


def _their_tokens(tokenizer: Any, text: str) -> list[list[int]] | None:
    try:
        return [tokenizer.encode(text, add_special_tokens=special) for special in (True, False)]
    except Exception:
        return None


def _prompt(codec: TextCodec) -> str | None:
    try:
        return codec.render_chat(_CONVERSATION)
    except InvalidRequestError:
        return None


def _their_prompt(tokenizer: Any) -> str | None:
    try:
        prompt: str = tokenizer.apply_chat_template(
            list(_CONVERSATION), tokenize=False, add_generation_prompt=True
        )
    except Exception:
        return None
    return prompt


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
