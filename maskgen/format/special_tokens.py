"""The special and added tokens that a model directory declares beside its tokenizer.json.

They are read as transformers 5 reads them (`PreTrainedTokenizerBase._from_pretrained` and its
`__init__` in `tokenization_utils_base.py`, `TokenizersBackend.__init__` in
`tokenization_utils_tokenizers.py`), but for the defaults of its tokenizer classes: a token that no
file sets is not set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from maskgen.format.json_file import read_json
from maskgen.format.model_directory import ModelDirectoryError

TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
ADDED_TOKENS_FILE = "added_tokens.json"

_STANDARD = tuple(f"{kind}_token" for kind in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_DECODER = "added_tokens_decoder"
_EXTRA, _OLD_EXTRA = "extra_special_tokens", "additional_special_tokens"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True, slots=True)
class DeclaredTokens:
    """What the files declare.

    Attributes:
        named: name -> text of the special tokens that are set, such as `bos_token`.
        added: for `Tokenizer.add_tokens`, in this order; some are there with other flags.
    """

    named: dict[str, str]
    added: tuple[AddedToken, ...]


def read_declared_tokens(
    directory: Path, config: Mapping[str, Any], tokenizer: Tokenizer
) -> DeclaredTokens:
    """The tokens that the files of a directory declare.

    special_tokens_map.json and added_tokens.json count only where tokenizer_config.json has no
    `added_tokens_decoder`, which newer versions write; the first then wins over the config.

    Args:
        directory: of a model, or an engine directory.
        config: its tokenizer_config.json.
        tokenizer: its tokenizer.json, as it is.

    Raises:
        ModelDirectoryError: a file is malformed.
    """
    try:
        return _declared_tokens(directory, config, tokenizer)
    except _DeclarationError as error:
        raise ModelDirectoryError(f"{directory}: {error}") from None


class _DeclarationError(ValueError):
    """A value that is no token; says in which field."""


def _declared_tokens(
    directory: Path, config: Mapping[str, Any], tokenizer: Tokenizer
) -> DeclaredTokens:
    settings = dict(config)
    if not settings.get(_EXTRA) and _OLD_EXTRA in settings:
        settings[_EXTRA] = settings.pop(_OLD_EXTRA)
    texts = {name: value for name, value in _own_names(config).items() if isinstance(value, str)}
    named = _named(texts) | _pop_named_extra(settings)
    if _DECODER not in config:
        _merge_special_tokens_map(directory, settings)
        named |= _pop_named_extra(settings)
    if _EXTRA not in settings and _OLD_EXTRA in settings:
        settings[_EXTRA] = settings.pop(_OLD_EXTRA)
    if tokenizer.padding is not None:
        settings.setdefault("pad_token", tokenizer.padding["pad_token"])
    standard = _named({name: settings[name] for name in _STANDARD if name in settings})
    named = standard | _named(_own_names(settings)) | named
    extra = [_token(_EXTRA, value) for value in _list(_EXTRA, settings.get(_EXTRA))]
    if _DECODER in config:
        added = _decoder(config[_DECODER])
    else:
        special = {token.content for token in (*standard.values(), *extra)}
        added = _added_tokens_map(directory, special) | tokenizer.get_added_tokens_decoder()
    return DeclaredTokens(
        {name: token.content for name, token in named.items()},
        _tokens_to_add(tokenizer, added, named.values(), extra),
    )


def _own_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Special tokens under names of the model's own, such as `image_token`."""
    return {
        name: value
        for name, value in settings.items()
        if name.endswith("_token") and name not in _STANDARD and isinstance(value, (str, dict))
    }


def _pop_named_extra(settings: dict[str, Any]) -> dict[str, AddedToken]:
    return _named(settings.pop(_EXTRA)) if isinstance(settings.get(_EXTRA), dict) else {}


def _named(values: Mapping[str, Any]) -> dict[str, AddedToken]:
    return {name: _token(name, value) for name, value in values.items() if value is not None}


def _merge_special_tokens_map(directory: Path, settings: dict[str, Any]) -> None:
    path = directory / SPECIAL_TOKENS_FILE
    for name, value in (read_json(path, ModelDirectoryError) if path.is_file() else {}).items():
        if name == _EXTRA and isinstance(value, list):
            value = [*_list(_EXTRA, settings.get(_EXTRA)), *value]
        settings[name] = value


def _added_tokens_map(directory: Path, special: Set[str]) -> dict[int, AddedToken]:
    path = directory / ADDED_TOKENS_FILE
    tokens = read_json(path, ModelDirectoryError) if path.is_file() else {}
    if not all(type(token_id) is int for token_id in tokens.values()):
        raise ModelDirectoryError(f"{path} does not map tokens to ids")
    return {i: AddedToken(text, special=text in special) for text, i in tokens.items()}


def _decoder(value: Any) -> dict[int, AddedToken]:
    if not isinstance(value, dict) or not all(token_id.isdecimal() for token_id in value):
        raise _DeclarationError(f"{TOKENIZER_CONFIG_FILE}: {_DECODER} does not map ids to tokens")
    return {int(token_id): _token(_DECODER, token) for token_id, token in value.items()}


def _token(name: str, value: Any) -> AddedToken:
    fields: Any = {"content": value, "special": True} if isinstance(value, str) else value
    try:
        flags = {flag: fields[flag] for flag in _FLAGS if flag in fields}
        return AddedToken(fields["content"], **flags)
    except (TypeError, KeyError, UnicodeEncodeError):
        raise _DeclarationError(
            f"{TOKENIZER_CONFIG_FILE} or {SPECIAL_TOKENS_FILE}: {name} is {value!r:.100},"
            " expected a token's text or an object with its content"
        ) from None


def _list(name: str, value: Any) -> list[Any]:
    if value is None or isinstance(value, list):
        return value or []
    raise _DeclarationError(
        f"{TOKENIZER_CONFIG_FILE} or {SPECIAL_TOKENS_FILE}: {name} is {value!r:.100},"
        " expected a list"
    )


def _tokens_to_add(
    tokenizer: Tokenizer,
    added: Mapping[int, AddedToken],
    named: Iterable[AddedToken],
    extra: Iterable[AddedToken],
) -> tuple[AddedToken, ...]:
    """Those of a list of added tokens, then special ones that neither it nor the file has."""
    special = {token.content: token for token in named if token.content}
    tokens = [added[token_id] for token_id in sorted(added)]
    known = {token.content for token in (*tokenizer.get_added_tokens_decoder().values(), *tokens)}
    for token in (*special.values(), *extra):
        if token.content not in known:
            known.add(token.content)
            tokens.append(token)
    for token in tokens:
        if token.content in special:
            token.special = True
    return tuple(tokens)
