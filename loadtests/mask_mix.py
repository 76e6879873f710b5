"""Which mask each request of a run asks for."""

from __future__ import annotations

import random
from dataclasses import dataclass

_FORMS = "one:NAME, uniform:A,B,... or zipf:A,B,... (zipf@1.2:A,B,... sets the exponent)"


@dataclass(frozen=True, slots=True)
class MaskMix:
    """A distribution over masks.

    Attributes:
        names: masks, the most frequent first.
        weights: their relative frequencies.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> MaskMix:
        """A mix from `one:NAME`, `uniform:A,B,...`, `zipf:A,B,...` or `zipf@EXPONENT:A,B,...`.

        Zipf: the r-th mask is asked for in proportion to 1 / r ** exponent, exponent 1 unless told.

        Raises:
            ValueError: any other text.
        """
        form, colon, listed = text.partition(":")
        kind, at, exponent_text = form.partition("@")
        names = tuple(name.strip() for name in listed.split(","))
        if not colon or not all(names) or len(set(names)) != len(names):
            raise ValueError(f"mask mix {text!r}: expected {_FORMS}, each mask once")
        if kind == "one" and len(names) == 1 and not at:
            return cls(names, (1.0,))
        if kind == "uniform" and not at:
            return cls(names, (1.0,) * len(names))
        if kind == "zipf":
            exponent = _positive(exponent_text, text) if at else 1.0
            return cls(names, tuple(rank**-exponent for rank in range(1, len(names) + 1)))
        raise ValueError(f"mask mix {text!r}: expected {_FORMS}")

    def choose(self, seed: int, index: int) -> str:
        """The mask of request `index`: the same for the same seed, whatever the order of calls."""
        return random.Random(f"mask:{seed}:{index}").choices(self.names, self.weights)[0]


def _positive(number: str, text: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if not 0.0 < value < 100.0:
        raise ValueError(f"mask mix {text!r}: the exponent {number!r} is not between 0 and 100")
    return value
