"""A model directory's tokenizer as the metadata of a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskgen.format.text_files import TEMPLATE_FILE
from maskgen.format.tokenizer import TOKENIZER_FILE, ModelTokenizer
from maskgen.gguf_model.header import GgufError
from maskgen.gguf_model.splits import DIGITS_ALONE, SPLITS, WHOLE_WORDS

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_SPACE = "\u2581"
_NAMED = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
_UNMERGED = -1e6


def vocabulary_metadata(model: Path, vocab_size: int) -> dict[str, Any]:
    """The keys `tokenizer.*`.

    Args:
        model: the directory.
        vocab_size: rows of the embedding; ids without a token are filled up.

    Raises:
        GgufError: the tokenizer is none that a GGUF file can describe.
        ModelDirectoryError: a file is malformed.
    """
    tokenizer = ModelTokenizer(model)
    content = json.loads((model / TOKENIZER_FILE).read_text(encoding="utf-8"))
    bpe = content["model"]
    if bpe.get("type") != "BPE":
        raise GgufError(f"{model}: a tokenizer of the kind {bpe.get('type')!r} is not exported")
    ids = {i: text for text, i in tokenizer.backend.get_vocab(with_added_tokens=True).items()}
    texts = [ids.get(i, f"[PAD{i}]") for i in range(vocab_size)]
    kinds = [_NORMAL if i in ids else _UNUSED for i in range(vocab_size)]
    for i, token in tokenizer.backend.get_added_tokens_decoder().items():
        if i < vocab_size:
            kinds[i] = _CONTROL if token.special else _USER_DEFINED
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in bpe["merges"]]
    found: dict[str, Any] = {"tokenizer.ggml.tokens": texts, "tokenizer.ggml.token_type": kinds}
    if bpe.get("byte_fallback"):
        found |= _by_scores(model, content, texts, kinds, merges)
    else:
        found |= {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": _split_name(model, content),
            "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        }
    return found | _edges(tokenizer) | _template(model, tokenizer.config)


def _by_scores(
    model: Path,
    content: Mapping[str, Any],
    texts: list[str],
    kinds: list[int],
    merges: list[list[str]],
) -> dict[str, Any]:
    """SentencePiece's: a token's score is the place of the first merge that makes it."""
    normalizer = json.dumps(content.get("normalizer") or {})
    if _SPACE not in normalizer and "Metaspace" not in json.dumps(content.get("pre_tokenizer")):
        raise GgufError(f"{model}: a tokenizer that falls back to bytes spells spaces as {_SPACE}")
    place: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        place.setdefault(left + right, rank)
    scores = [-float(place[text]) if text in place else _UNMERGED for text in texts]
    for i, text in enumerate(texts):
        if len(text) == 6 and text.startswith("<0x"):
            kinds[i] = _BYTE
        elif text == content["model"].get("unk_token"):
            kinds[i] = _UNKNOWN
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": "Prepend" in normalizer
        or "Metaspace" in json.dumps(content.get("pre_tokenizer")),
    }


def _split_name(model: Path, content: Mapping[str, Any]) -> str:
    """llama.cpp's name of what the pre-tokenizer does."""
    pre = content.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    kinds = [step.get("type") for step in steps]
    whole = bool(content["model"].get("ignore_merges"))
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm" if "smollm" in DIGITS_ALONE else min(DIGITS_ALONE)
    pattern = steps[0].get("pattern", {}).get("Regex") if kinds == ["Split", "ByteLevel"] else None
    for name, known in SPLITS.items():
        if pattern == known and whole == (name in WHOLE_WORDS):
            return name
    raise GgufError(
        f"{model}: llama.cpp has no name for how this tokenizer splits texts"
        f" ({pattern or ', '.join(map(str, kinds))!r:.120})"
    )


def _edges(tokenizer: ModelTokenizer) -> dict[str, Any]:
    around = tokenizer.backend.encode("a").ids
    found: dict[str, Any] = {
        "tokenizer.ggml.add_bos_token": around[0] == tokenizer.bos_token_id,
        "tokenizer.ggml.add_eos_token": around[-1] == tokenizer.eos_token_id,
    }
    for name, key in _NAMED.items():
        text = tokenizer.special_tokens.get(f"{name}_token")
        token = None if text is None else tokenizer.backend.token_to_id(text)
        if token is not None:
            found[f"tokenizer.ggml.{key}_token_id"] = token
    return found


def _template(model: Path, config: Mapping[str, Any]) -> dict[str, str]:
    file, inside = model / TEMPLATE_FILE, config.get("chat_template")
    text = file.read_text(encoding="utf-8") if file.is_file() else inside
    return {"tokenizer.chat_template": text} if isinstance(text, str) else {}
