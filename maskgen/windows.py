"""Texts as windows of token ids."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

Windows = npt.NDArray[np.int32]


class TooLittleTextError(ValueError):
    """The texts do not fill the windows asked for."""


def token_windows(tokenizer: Any, texts: Iterable[str], length: int) -> Windows:
    """Documents, each followed by the end-of-text token, cut into windows.

    Args:
        tokenizer: of `transformers`.
        texts: the documents.
        length: tokens in a window.

    Returns:
        (windows, length); tokens after the last full window are dropped.

    Raises:
        TooLittleTextError: there is less than one window of text.
    """
    ids: list[int] = []
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for text in texts:
        # `verbose=False`: that a document is longer than the context is of no interest here.
        ids += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] + end
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
