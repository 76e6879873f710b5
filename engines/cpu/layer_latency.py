"""How long a dense decoder layer's linears take, by its width: a line fitted to measured times.

A layer's feed-forward and attention products are timed apart, each at several widths. Every round
goes through enough copies of the weights that none is in a cache at its turn, and the fastest of
many rounds counts: what else runs only adds time. Attention over the context is not in it, since
that depends on the context, nor is what all widths have in common outside of layers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from engines.errors import EngineError
from engines.native import kernels
from engines.native.layout import BF16, PackedWeights, pack_dense

_ROUNDS = 15
_CACHE_BYTES = 64 << 20  # more than most caches hold
_PARTS = (1.0, 0.75, 0.5, 0.25)


class LatencyError(EngineError, ValueError):
    """Times do not grow with the width."""


@dataclass(frozen=True, slots=True)
class FittedLine:
    """Microseconds = fixed + unit * units."""

    unit: float
    fixed: float


@dataclass(frozen=True, slots=True)
class _Layers:
    """A call that goes through the products of some copies of a layer."""

    call: Callable[[], object]
    count: int


def feed_forward_latency(
    hidden: int, intermediate: int, tokens: int = 1, threads: int = 0
) -> FittedLine:
    """Gate, up and down of a layer, by its channels.

    Args:
        hidden, intermediate: widths of the whole layer.
        tokens: in a step.
        threads: 0 uses OpenMP's own number.

    Raises:
        LatencyError: times do not grow with the width.
    """

    def layers(channels: int) -> _Layers:
        count = _copies(3 * hidden * channels)
        made = [[_weights(channels, hidden), _weights(channels, hidden)] for _ in range(count)]
        downs = [_weights(hidden, channels) for _ in range(count)]
        x = np.ones((tokens, hidden), np.float32)

        def call() -> None:
            for (gate, up), down in zip(made, downs, strict=True):
                kernels.linear(down, kernels.gated(gate, up, x, threads=threads), threads=threads)

        return _Layers(call, count)

    return fitted(_times(_widths(intermediate), layers))


def attention_latency(
    hidden: int, key_value_heads: int, repeat: int, head: int, tokens: int = 1, threads: int = 0
) -> FittedLine:
    """The q, k, v and o products of a layer, by its key-value heads.

    Args:
        hidden: width of the residual stream.
        key_value_heads: of the whole layer.
        repeat: query heads that read one key-value head.
        head: channels of a head.
        tokens, threads: as of `feed_forward_latency`.

    Raises:
        LatencyError: as there.
    """

    def layers(heads: int) -> _Layers:
        queries = heads * head * repeat
        count = _copies(hidden * (2 * queries + 2 * heads * head))
        into = [_weights(queries + 2 * heads * head, hidden) for _ in range(count)]
        out = [_weights(hidden, queries) for _ in range(count)]
        x, y = np.ones((tokens, hidden), np.float32), np.ones((tokens, queries), np.float32)

        def call() -> None:
            for first, second in zip(into, out, strict=True):
                kernels.linear(first, x, threads=threads)
                kernels.linear(second, y, threads=threads)

        return _Layers(call, count)

    # One head alone has nothing to be compared with but two.
    return fitted(_times(_widths(max(2, key_value_heads)), layers))


def fitted(times: Mapping[int, float]) -> FittedLine:
    """The line through times, by least squares.

    Args:
        times: units -> seconds.

    Raises:
        LatencyError: it does not rise.
    """
    unit, fixed = np.polyfit(list(times), [1e6 * t for t in times.values()], 1)
    if unit <= 0:
        shown = ", ".join(f"{1e6 * t:.1f} us with {count}" for count, t in times.items())
        raise LatencyError(
            f"a layer's time does not grow with its width ({shown}); measure on a quieter machine,"
            " or budget weights instead"
        )
    return FittedLine(float(unit), max(0.0, float(fixed)))


def _times(units: Iterable[int], layers: Callable[[int], _Layers]) -> dict[int, float]:
    """Seconds a layer, of the fastest round of each width; widths take turns."""
    work = {count: layers(count) for count in units}
    best = dict.fromkeys(work, float("inf"))
    for _ in range(_ROUNDS):
        for count, made in work.items():
            begin = time.perf_counter()
            made.call()
            best[count] = min(best[count], (time.perf_counter() - begin) / made.count)
    return best


def _widths(whole: int) -> list[int]:
    return sorted({max(1, round(whole * part)) for part in _PARTS})


def _copies(weights: int) -> int:
    return max(1, -(-_CACHE_BYTES // (2 * weights)))


def _weights(rows: int, columns: int) -> PackedWeights:
    return pack_dense(np.ones((rows, columns), BF16))
