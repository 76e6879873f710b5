"""How the files of mixtures of experts name their matrices, one by one.

transformers 5 holds the experts of a layer in parameters of three dimensions and writes files with
a matrix for each (`conversion_mapping.py`). Masks name what the files hold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_ROUTER = re.compile(
    r".*\.(mlp|block_sparse_moe|feed_forward)"
    r"\.(gate|router|router\.layer|shared_expert_gate)\.weight"
)


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """Names in the files of one family.

    Attributes:
        block: of the mixture in its decoder layer.
        gate: of an expert's gate, `up` and `down` of its other two matrices.
    """

    block: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"


EXPERTS: Mapping[str, ExpertNames] = {
    "mixtral": ExpertNames("block_sparse_moe", "w1", "w3", "w2"),
    "qwen2_moe": ExpertNames(),
    "qwen3_moe": ExpertNames(),
    "olmoe": ExpertNames(),
}
"""By `model_type`."""


def is_router(tensor: str) -> bool:
    """Whether a tensor of this name decides which experts a token goes to; it is never masked."""
    return _ROUTER.fullmatch(tensor) is not None
