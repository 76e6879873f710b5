"""Single tokens as text and bytes, and log-probs in the shapes of the APIs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from tokenizers.decoders import ByteLevel

from engines.base import TokenLogprobs
from engines.text import TextCodec
from serving.schemas.chat import ChatLogprobs, ChatTokenLogprob, ChatTopLogprob
from serving.schemas.common import PromptLogprob, PromptLogprobs
from serving.schemas.completions import CompletionLogprobs

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class TokenTexts:
    """The exact bytes of every token, which decoding loses where a character is split."""

    def __init__(self, codec: TextCodec) -> None:
        self._tokenizer = codec.tokenizer
        self._alphabet = (
            _byte_level_alphabet() if isinstance(self._tokenizer.decoder, ByteLevel) else None
        )
        self.bytes = lru_cache(maxsize=65536)(self._bytes)

    def text(self, token_id: int) -> str:
        """Text of one token; incomplete UTF-8 shows as U+FFFD."""
        return self.bytes(token_id).decode("utf-8", "replace")

    def _bytes(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if self._alphabet is not None:
            values = [self._alphabet.get(char, -1) for char in token]
            return bytes(values) if min(values, default=0) >= 0 else token.encode()
        byte = _BYTE_TOKEN.fullmatch(token)
        return bytes([int(byte[1], 16)]) if byte else token.replace("\u2581", " ").encode()


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's character for each byte: printable ones stand for themselves, others from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + n): byte for n, byte in enumerate(others)
    }


def completion_logprobs(
    tokens: TokenTexts,
    entries: Sequence[TokenLogprobs | None],
    token_ids: Sequence[int],
    top: int,
    offsets: Sequence[int],
) -> CompletionLogprobs:
    """`logprobs` of a completion choice.

    Args:
        tokens: texts of tokens.
        entries: one per token; None where the model gave no prediction (the first prompt token).
        token_ids: the tokens.
        top: how many alternatives to show; the chosen token is always among them.
        offsets: where in the choice's text each token begins.
    """
    return CompletionLogprobs(
        tokens=[tokens.text(token_id) for token_id in token_ids],
        token_logprobs=[None if e is None else e.logprob for e in entries],
        top_logprobs=[None if e is None else _top(tokens, e, top) for e in entries],
        text_offset=list(offsets),
    )


def _top(tokens: TokenTexts, entry: TokenLogprobs, top: int) -> dict[str, float]:
    best: dict[str, float] = {}
    for token_id, logprob in (*entry.top[:top], (entry.token_id, entry.logprob)):
        best.setdefault(tokens.text(token_id), logprob)
    return best


def chat_logprobs(tokens: TokenTexts, entries: Sequence[TokenLogprobs], top: int) -> ChatLogprobs:
    """`logprobs` of a chat choice."""
    return ChatLogprobs(
        content=[
            ChatTokenLogprob(
                token=tokens.text(entry.token_id),
                logprob=entry.logprob,
                bytes=list(tokens.bytes(entry.token_id)),
                top_logprobs=[
                    ChatTopLogprob(
                        token=tokens.text(token_id),
                        logprob=logprob,
                        bytes=list(tokens.bytes(token_id)),
                    )
                    for token_id, logprob in entry.top[:top]
                ],
            )
            for entry in entries
        ],
        refusal=None,
    )


def prompt_logprobs(
    tokens: TokenTexts, entries: Sequence[TokenLogprobs | None], top: int
) -> PromptLogprobs:
    """vLLM's `prompt_logprobs`: by token id, the actual token and the likeliest ones."""
    positions: PromptLogprobs = []
    for entry in entries:
        if entry is None:
            positions.append(None)
            continue
        shown = {
            token_id: PromptLogprob(logprob=logprob, rank=rank, decoded_token=tokens.text(token_id))
            for rank, (token_id, logprob) in enumerate(entry.top[:top], start=1)
        }
        shown[entry.token_id] = PromptLogprob(
            logprob=entry.logprob, rank=entry.rank, decoded_token=tokens.text(entry.token_id)
        )
        positions.append(shown)
    return positions
