"""Names of mask methods, and the classes behind them, imported only when asked for.

To add a method, write one file in `maskgen/methods/` and one line in `METHODS`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal

from maskgen.method_lookup import UnknownMethodError, find_method

Kind = Literal["prune", "learn"]


@dataclass(frozen=True, slots=True)
class MethodEntry:
    """One registered method.

    Attributes:
        kind: `prune` (one-shot, `twofour mask prune`) or `learn` (gradient or reward, `twofour
            mask learn`).
        path: `module:Class`.
        summary: one line for help and error messages.
    """

    kind: Kind
    path: str
    summary: str


METHODS: dict[str, MethodEntry] = {
    "magnitude": MethodEntry(
        "prune", "maskgen.methods.magnitude:Magnitude", "largest |w|; needs no text"
    ),
    "wanda": MethodEntry("prune", "maskgen.methods.wanda:Wanda", "|w| times the norm of its input"),
    "ria": MethodEntry(
        "prune", "maskgen.methods.ria:Ria", "relative importance times the root of the input norm"
    ),
    "sparsegpt": MethodEntry(
        "prune", "maskgen.methods.sparsegpt:SparseGPT", "second-order, mask only"
    ),
    "sparsegpt-update": MethodEntry(
        "prune",
        "maskgen.methods.sparsegpt:SparseGPTUpdate",
        "second-order, with changed weights in a new checkpoint",
    ),
    "sparseswaps": MethodEntry(
        "prune",
        "maskgen.methods.sparseswaps:SparseSwaps",
        "Wanda's mask, weights exchanged where the layer's error falls",
    ),
    "admm": MethodEntry(
        "prune", "maskgen.methods.admm:ADMM", "mask and changed weights by ADMM, a new checkpoint"
    ),
    "maskllm": MethodEntry(
        "learn", "maskgen.methods.maskllm:MaskLLM", "six logits a group, Gumbel-softmax"
    ),
    "roi": MethodEntry("learn", "maskgen.methods.roi:RoI", "a logit a weight, relaxed top-2"),
    "maskpro": MethodEntry(
        "learn", "maskgen.methods.maskpro:MaskPro", "a logit a weight, forward passes only"
    ),
}


def method_names(kind: Kind) -> list[str]:
    """Names of all methods of one kind, in registration order."""
    return [name for name, entry in METHODS.items() if entry.kind == kind]


def load_method(name: str, kind: Kind) -> type[Any]:
    """The class of a method.

    Raises:
        UnknownMethodError: there is no such method of this kind; the message suggests one.
    """
    other = METHODS.get(name)
    if other is not None and other.kind != kind:
        raise UnknownMethodError(
            f"{name} is a method to {other.kind} masks: use `twofour mask {other.kind}`"
        )
    entry = find_method({known: METHODS[known] for known in method_names(kind)}, name)
    module, _, attribute = entry.path.partition(":")
    loaded: type[Any] = getattr(importlib.import_module(module), attribute)
    return loaded
