"""The tokenizer that a GGUF file's metadata describes, as the files of a model directory.

Text is split and merged as llama.cpp does it (`src/llama-vocab.cpp`), for the two kinds that
decoders have: byte-level BPE (`gpt2`) and BPE by scores (`llama`, SentencePiece's).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from maskgen.format.json_file import write_json
from maskgen.format.special_tokens import TOKENIZER_CONFIG_FILE
from maskgen.format.text_files import TEMPLATE_FILE, TEMPLATE_FOLDER
from maskgen.format.tokenizer import TOKENIZER_FILE
from maskgen.gguf_model.header import GgufError, GgufHeader
from maskgen.gguf_model.splits import DIGITS_ALONE, FIRST_TOKEN, SPLITS, WHOLE_WORDS

_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5
_SPACE = "\u2581"
_NAMED = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_TEMPLATE = "tokenizer.chat_template"


def write_vocabulary(header: GgufHeader, directory: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat templates.

    Raises:
        GgufError: the metadata lack the vocabulary, or describe a tokenizer that is not understood.
    """
    metadata = header.metadata
    vocabulary = _Vocabulary(header)
    model = metadata.get("tokenizer.ggml.model")
    if model == "gpt2":
        tokenizer, add_bos = _byte_level(header, vocabulary)
    elif model == "llama":
        tokenizer, add_bos = _by_scores(header, vocabulary), True
    else:
        raise GgufError(
            f"{header.path} has a tokenizer of the kind {model!r}, expected gpt2 or llama"
            " (tokenizer.ggml.model)"
        )
    tokenizer.add_tokens(vocabulary.added)
    named = {f"{name}_token": vocabulary.named(key) for name, key in _NAMED.items()}
    edges = {
        edge: metadata.get(f"tokenizer.ggml.add_{edge}_token", absent)
        for edge, absent in (("bos", add_bos), ("eos", False))
    }
    _add_edges(header, tokenizer, [(edge, named[f"{edge}_token"]) for edge in edges if edges[edge]])
    tokenizer.save(str(directory / TOKENIZER_FILE))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **{name: text for name, text in named.items() if text is not None},
        "add_bos_token": bool(edges["bos"]),
        "add_eos_token": bool(edges["eos"]),
    }
    write_json(directory / TOKENIZER_CONFIG_FILE, config)
    _write_templates(metadata, directory)


class _Vocabulary:
    """The tokens: text and kind.

    Attributes:
        tokens: their texts, by id.
        kinds: llama.cpp's token types, by id.
        added: those that are found in a text before it is split.
    """

    def __init__(self, header: GgufHeader) -> None:
        self._header = header
        self.tokens: tuple[str, ...] = header.metadata.get("tokenizer.ggml.tokens", ())
        self.kinds: tuple[int, ...] = header.metadata.get(
            "tokenizer.ggml.token_type", (1,) * len(self.tokens)
        )
        if not self.tokens or len(self.kinds) != len(self.tokens):
            raise GgufError(
                f"{header.path} holds {len(self.tokens)} tokens and {len(self.kinds)} token types"
            )
        self.added = [
            AddedToken(text, special=kind != _USER_DEFINED, normalized=False)
            for text, kind in zip(self.tokens, self.kinds, strict=True)
            if kind in (_UNKNOWN, _CONTROL) or (kind == _USER_DEFINED and text.strip(" "))
        ]

    def ids(self, texts: Iterable[str]) -> dict[str, int]:
        """Text -> id, without the padding that fills a vocabulary up."""
        return {
            text: i
            for i, (text, kind) in enumerate(zip(texts, self.kinds, strict=True))
            if kind != _UNUSED or text != f"[PAD{i}]"
        }

    def named(self, key: str) -> str | None:
        """The text of the special token that the metadata give an id."""
        token = self._header.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if token is None:
            return None
        if type(token) is not int or not 0 <= token < len(self.tokens):
            raise GgufError(
                f"{self._header.path}: tokenizer.ggml.{key}_token_id is {token!r}, the vocabulary"
                f" has {len(self.tokens)} tokens"
            )
        return self.tokens[token]


def _byte_level(header: GgufHeader, vocabulary: _Vocabulary) -> tuple[Tokenizer, bool]:
    """The tokenizer, and whether texts begin with a token of their own unless the file says."""
    name = header.metadata.get("tokenizer.ggml.pre")
    if name not in SPLITS and name not in DIGITS_ALONE:
        raise GgufError(
            f"{header.path}: how texts are split is {name!r} (tokenizer.ggml.pre), which is not"
            f" understood (known: {', '.join(sorted({*SPLITS, *DIGITS_ALONE}))})"
        )
    merges = [_pair(header, merge) for merge in header.metadata.get("tokenizer.ggml.merges", ())]
    ids = vocabulary.ids(vocabulary.tokens)
    tokenizer = _bpe(header, ids, merges, ignore_merges=name in WHOLE_WORDS)
    if name in DIGITS_ALONE:
        steps = [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    else:
        steps = [
            pre_tokenizers.Split(Regex(SPLITS[name]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, name in FIRST_TOKEN


def _by_scores(header: GgufHeader, vocabulary: _Vocabulary) -> Tokenizer:
    metadata = header.metadata
    # The writer of these files spells the space in tokens of the user as itself.
    tokens = [
        text.replace(" ", _SPACE) if kind == _USER_DEFINED else text
        for text, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True)
    ]
    ids = vocabulary.ids(tokens)
    stored = metadata.get("tokenizer.ggml.merges")
    if stored is not None:
        merges = [_pair(header, merge) for merge in stored]
    else:
        merges = _merges(ids, _ranks(header, tokens))
    unknown = vocabulary.named("unknown")
    tokenizer = _bpe(header, ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    prefixed = metadata.get("tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefixed else spaces
    )
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(
        [*steps, decoders.Strip(" ", left=1, right=0)] if prefixed else steps
    )
    return tokenizer


def _ranks(header: GgufHeader, tokens: Sequence[str]) -> Sequence[float]:
    """What is merged first has the higher rank: the score, or with Gemma the place in the list."""
    if str(header.metadata.get("general.architecture")).startswith("gemma"):
        return range(0, -len(tokens), -1)
    scores: Sequence[float] = header.metadata.get("tokenizer.ggml.scores", ())
    if len(scores) != len(tokens):
        raise GgufError(
            f"{header.path} holds {len(tokens)} tokens and {len(scores)} scores"
            " (tokenizer.ggml.scores)"
        )
    return scores


def _merges(ids: Mapping[str, int], ranks: Sequence[float]) -> list[tuple[str, str]]:
    """Every way to make a token of two, in the order in which SentencePiece would merge them."""
    cuts = [
        (text[:cut], text[cut:], ranks[i])
        for text, i in ids.items()
        for cut in range(1, len(text))
        if text[:cut] in ids and text[cut:] in ids
    ]
    cuts.sort(key=lambda cut: (-cut[2], -len(cut[0])))
    return [(left, right) for left, right, _ in cuts]


def _bpe(
    header: GgufHeader, ids: dict[str, int], merges: list[tuple[str, str]], **options: Any
) -> Tokenizer:
    try:
        return Tokenizer(models.BPE(vocab=ids, merges=merges, **options))
    except Exception as error:  # the library's own type for all it refuses
        raise GgufError(f"{header.path}: tokens and merges do not fit: {error}") from None


def _pair(header: GgufHeader, merge: str) -> tuple[str, str]:
    left, space, right = merge.partition(" ")
    if not space:
        raise GgufError(
            f"{header.path}: the merge {merge!r:.80} is no pair (tokenizer.ggml.merges)"
        )
    return left, right


def _add_edges(
    header: GgufHeader, tokenizer: Tokenizer, edges: Sequence[tuple[str, str | None]]
) -> None:
    """Let texts begin and end with tokens of their own."""
    parts = {"bos": "", "eos": ""}
    special = []
    for edge, text in edges:
        if text is None:
            raise GgufError(
                f"{header.path}: texts should have the {edge} token around them"
                f" (tokenizer.ggml.add_{edge}_token), and the file names none"
            )
        parts[edge] = text
        special.append((text, tokenizer.token_to_id(text)))
    if special:
        single = f"{parts['bos']} $A {parts['eos']}".split()
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=special
        )


def _write_templates(metadata: Mapping[str, Any], directory: Path) -> None:
    template = metadata.get(_TEMPLATE)
    if isinstance(template, str):
        (directory / TEMPLATE_FILE).write_text(template, encoding="utf-8")
    for name in metadata.get(f"{_TEMPLATE}s", ()):
        text = metadata.get(f"{_TEMPLATE}.{name}")
        if isinstance(text, str) and name.replace("_", "").isalnum() and name.isascii():
            folder = directory / TEMPLATE_FOLDER
            folder.mkdir(exist_ok=True)
            (folder / f"{name}.jinja").write_text(text, encoding="utf-8")
