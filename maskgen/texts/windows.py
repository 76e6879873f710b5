"""Texts as windows of token ids."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from maskgen.format.tokenizer import ModelTokenizer

Windows = npt.NDArray[np.int32]


class TooLittleTextError(ValueError):
    """The texts do not fill the windows asked for."""


def token_windows(tokenizer: ModelTokenizer, texts: Iterable[str], length: int) -> Windows:
    """Documents, each followed by the end-of-text token, cut into windows.

    Args:
        tokenizer: of the model.
        texts: the documents.
        length: tokens in a window.

    Returns:
        (windows, length); tokens after the last full window are dropped.

    Raises:
        TooLittleTextError: there is less than one window of text.
        TextEncodingError: a text has no token ids, or some that the model has no embedding for.
    """
    ids: list[int] = []
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for text in texts:
        ids += tokenizer.encode(text, add_special_tokens=False) + end
    count = len(ids) // length
    if count == 0:
        raise TooLittleTextError(
            f"the text has {len(ids)} tokens, less than one window of {length}; "
            "give more text or a smaller window"
        )
    return np.array(ids[: count * length], dtype=np.int32).reshape(count, length)


def draw_windows(windows: Windows, count: int, seed: int) -> Windows:
    """`count` different windows, drawn with a seed.

    Raises:
        TooLittleTextError: there are fewer.
    """
    if count < 1:
        raise ValueError(f"{count} windows were asked for; at least 1 is needed")
    if count > len(windows):
        raise TooLittleTextError(
            f"the text has {len(windows)} windows of {windows.shape[1]} tokens, {count} were asked "
            "for; give more text, or ask for fewer or shorter windows"
        )
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(windows))
    return windows[order[:count]]
