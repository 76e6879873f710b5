"""Which masks have time series of their own: a bounded number, whatever is loaded over time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

OTHER = "_other"
"""Stands for all masks beyond the limit; no mask can be called so."""


class MaskLabels:
    """Gives model names their label, `base` or `base:mask`, and takes it back.

    The first masks that are used get labels of their own, up to the limit; all others share one. A
    mask that is unloaded loses its series once no request runs with it any more, and makes room.

    Args:
        limit: masks with labels of their own.
        forget: drops the series of a label.
    """

    def __init__(self, limit: int, forget: Callable[[str], None]) -> None:
        self._limit = limit
        self._forget = forget
        self._own: set[str] = set()
        self._users: Counter[str] = Counter()
        self._unloaded: set[str] = set()

    def of(self, model: str) -> str:
        """The label of a model name as `/v1/models` lists it."""
        base, colon, _ = model.rpartition(":")
        if not colon or model in self._own:
            return model
        if len(self._own) < self._limit:
            self._own.add(model)
            return model
        return f"{base}:{OTHER}"

    def enter(self, model: str) -> str:
        """A request for this model begins; the label that it counts under until it leaves."""
        self._unloaded.discard(model)
        label = self.of(model)
        self._users[label] += 1
        return label

    def leave(self, label: str) -> None:
        """A request that got this label has ended."""
        self._users[label] -= 1
        if not self._users[label]:
            del self._users[label]
            if label in self._unloaded:
                self._drop(label)

    def unload(self, model: str) -> None:
        """A mask was unloaded."""
        if model not in self._own:
            return
        if self._users[model]:
            self._unloaded.add(model)
        else:
            self._drop(model)

    def _drop(self, label: str) -> None:
        self._unloaded.discard(label)
        self._own.discard(label)
        self._forget(label)
