"""Carry over to another mask what learning changed in one: the changes, not the mask.

Learning changes about one group in a thousand of its prior. On another text the one-shot mask
differs in a third of all groups, and yet the same few changes improved it: masks learned from
there were the better ones on all six domains that were tried (docs/masks.md).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from maskgen.compare import check_comparable
from maskgen.format.mask import Mask


def graft(onto: Mask, learned: Mask, prior: Mask) -> Mask:
    """`onto`, with `learned`'s placement in each group in which `learned` differs from `prior`.

    Args:
        onto: typically a one-shot mask of a domain's text; its facts are kept.
        learned: a mask that was learned on other text.
        prior: the mask that `learned` started from.

    Raises:
        MaskFileError: the masks are for different models, have different patterns, or list other
            layers.
    """
    for other in (learned, prior):
        check_comparable(onto, other)
    codes = {
        name: np.where(learned.codes[name] == prior.codes[name], kept, learned.codes[name])
        for name, kept in onto.codes.items()
    }
    return replace(onto, codes=codes, parent_digest=None)
