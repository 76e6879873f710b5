"""Which windows of token ids a step sees."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from maskgen.texts.windows import Windows


class Batches:
    """The windows of every micro-batch, as a function of (seed, index) alone.

    Windows are visited in a fresh random order every epoch; an epoch that ends inside a batch goes
    on in the next one. Having no state, the order survives resumption and is the same on all ranks.
    """

    def __init__(self, windows: Windows, size: int, seed: int) -> None:
        self.windows = windows
        self._size = size
        self._seed = seed
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def first(self, count: int) -> Batches:
        """The same on `count` of the windows, drawn with the seed (all, if there are fewer)."""
        order = np.random.Generator(np.random.Philox(key=self._seed)).permutation(len(self.windows))
        return Batches(self.windows[order[:count]], self._size, self._seed)

    @property
    def epoch_length(self) -> int:
        """Micro-batches that it takes to see every window."""
        return -(-len(self.windows) // self._size)

    def indices(self, index: int) -> npt.NDArray[np.int64]:
        """Which windows micro-batch number `index` of the run holds, (size,)."""
        count = len(self.windows)
        places = np.arange(index * self._size, (index + 1) * self._size)
        return np.array([self._ordered(int(p) // count)[p % count] for p in places], dtype=np.int64)

    def __call__(self, index: int) -> npt.NDArray[np.int64]:
        """Token ids of micro-batch number `index`, (size, length)."""
        return self.windows[self.indices(index)].astype(np.int64)

    def _ordered(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.Philox(key=[self._seed, epoch]))
            self._order = generator.permutation(len(self.windows))
            self._epoch = epoch
        return self._order
