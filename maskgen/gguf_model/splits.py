"""How byte-level vocabularies split a text before they merge, by `tokenizer.ggml.pre`.

After `llm_tokenizer_bpe` in llama.cpp's `src/llama-vocab.cpp`; the patterns are those of the
models' own tokenizer.json.
"""

from __future__ import annotations

_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SHORT_FORMS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = _SHORT_FORMS + r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
_LLAMA3 = _WORDS + r"|\p{N}{1,3}" + _SIGNS + _SPACES
_QWEN2 = _WORDS + r"|\p{N}" + _SIGNS + _SPACES
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _cased(after: str, digits: str) -> str:
    """Words that are cut where small letters are followed by capital ones."""
    before = r"[^\r\n\p{L}\p{N}]?"
    words = f"{before}{_UPPER}*{_LOWER}+{after}|{before}{_UPPER}+{_LOWER}*{after}"
    return words + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACES


SPLITS = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais"), _GPT2),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3"), _LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), _LLAMA3),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "hunyuan"), _QWEN2),
    "tekken": _cased("", r"|\p{N}"),
    "gpt-4o": _cased(f"{_SHORT_FORMS}?", r"|\p{N}{1,3}"),
}
"""Name -> pattern whose matches are split off."""

DIGITS_ALONE = frozenset(
    ("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b")
)
"""Every digit by itself, and then as GPT-2 does."""

WHOLE_WORDS = frozenset(("llama3", "llama-v3", "llama-bpe", "falcon3", "tekken"))
"""A word that is a token is one, whatever its merges say."""

FIRST_TOKEN = WHOLE_WORDS
"""Texts begin with the token for it unless the file says otherwise."""
