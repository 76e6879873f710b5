"""Holding a transformed model to the answers of the one it was made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from maskgen.texts.windows import Windows
from maskgen.torch_model import context_length, load_model
from maskgen.transform.groups import TransformError

LARGEST_DIFFERENCE = 1e-3
"""Of fp32 logits, for every unit of the largest logit above 40: sums in another order."""


@dataclass(frozen=True, slots=True)
class AnswerDifference:
    """How two models' answers to the same text differ, both computed in fp32.

    Attributes:
        logits: largest difference of a logit.
        largest: largest logit of the first model.
        changed: positions at which another token is the likeliest.
        positions: how many were looked at.
    """

    logits: float
    largest: float
    changed: int
    positions: int


@torch.inference_mode()
def compare_answers(before: Path, after: Path, window: Windows) -> AnswerDifference:
    """Compare two model directories on (length,) token ids, or as many as their context holds."""
    ids = torch.from_numpy(window[None]).long()
    old, new = (_logits(directory, ids) for directory in (before, after))
    return AnswerDifference(
        logits=float((old - new).abs().max()),
        largest=float(old.abs().max()),
        changed=int((old.argmax(-1) != new.argmax(-1)).sum()),
        positions=len(old),
    )


def check_exact(difference: AnswerDifference) -> None:
    """Raise TransformError unless the answers agree up to the order of summation.

    For permutations. Rotations round the weights, whatever the type that is computed in.
    """
    limit = LARGEST_DIFFERENCE * max(1.0, difference.largest / 40)
    if not difference.logits < limit or difference.changed:
        raise TransformError(
            f"the transformed model answers otherwise: logits differ by {difference.logits:.2e} (at"
            f" most {limit:.0e}), the likeliest token at {difference.changed} of"
            f" {difference.positions} positions; the model is not what its architecture's table"
            " says"
        )


def _logits(directory: Path, ids: Tensor) -> Tensor:
    model = load_model(directory, "fp32")
    cut = ids[:, : context_length(model)].to(model.device)
    logits: Tensor = model(cut, use_cache=False).logits[0]
    return logits.cpu()
