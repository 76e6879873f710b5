"""Measures up to which share of changed groups a patch costs no more time than a copy.

In a batch of mixed masks a patch adds its product, whose cost rises with the groups it changes; a
copy makes the step read a second set of weights, whatever it changes. Steps of half-and-half
batches through layers of the model itself give both: one step with a second set of weights, and two
with synthetic patches, on the line through whose times a patch's cost lies. A mask is a patch up to
the share at which a copy would save a tenth of the step: less is not worth the memory of a copy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.cpu.mask_weights import LayerPatches, native_patches
from engines.cpu.model import PAGE_POSITIONS, CpuModel, native_layers
from engines.cpu.storage_rule import StorageRule
from engines.native._native import Decoder, Limits, Step
from engines.native.layout import BF16, PackedWeights
from engines.native.lowbit_patch import REMOVES, LowbitPatch
from engines.native.patch import AnyPatch, Patch

MEMORY_LIMIT = 4.5 / 13
"""Share of changed groups above which a patch (13 bytes each) outgrows a copy (4.5 a group)."""

WORTH = 0.1
"""Share of a step's time that a copy must save: it takes 35 times the memory of a patch of 1 %."""

BATCH_TOKENS = 8
"""Tokens of the measured batch: half of them use the base mask, half the other."""

_PROBES = (0.005, 0.1)
_ROUNDS = 12
_WORK_BYTES = 48 << 20  # of packed weights: more than most caches hold, some milliseconds a step


def measured_rule(model: CpuModel) -> StorageRule:
    """Measure the limit; a few dozen steps through 48 MiB of weights.

    Nothing else may run on the model's threads meanwhile.
    """
    # In a thread of its own, whose OpenMP team ends with it and binds nothing of the caller's.
    with ThreadPoolExecutor(1) as pool:
        times = pool.submit(_measure, model).result()
    copy, thin, thick = (1e3 * times[name] for name in ("copy", "thin", "thick"))
    limit = crossing(copy, thin, thick)
    half = BATCH_TOKENS // 2
    why = (
        f"a patch up to {limit:.2%}, measured with {model.isa} on {model.limits.threads} threads,"
        f" {half} + {half} tokens: {copy:.2f} ms with a copy,"
        f" {thin:.2f} ms with a patch of {_PROBES[0]:.1%}, {thick:.2f} ms with {_PROBES[1]:.1%}"
    )
    return StorageRule(limit, why)


def crossing(copy: float, thin: float, thick: float) -> float:
    """Share from which on a copy is worth its memory, from times of steps; at most `MEMORY_LIMIT`.

    Args:
        copy: time of a step with a copy.
        thin, thick: times of steps with patches of the two probed shares.
    """
    most = copy * (1 + WORTH)  # what a step with a patch may take
    slope = (thick - thin) / (_PROBES[1] - _PROBES[0])
    if slope <= 0:  # too small a model for its cost to show
        return MEMORY_LIMIT if most >= thick else 0.0
    return min(max(_PROBES[0] + (most - thin) / slope, 0.0), MEMORY_LIMIT)


def _measure(model: CpuModel) -> dict[str, float]:
    """Seconds of the fastest step of each kind: what else runs only adds time."""
    layers = _some_layers(model.base)
    limits = Limits(BATCH_TOKENS, 1, PAGE_POSITIONS, BATCH_TOKENS, model.limits.threads)
    native = model.decoder(limits, len(layers))
    base = native.add_weights(native_layers(layers))
    # The same layers in another order: nothing is copied, and none is in a cache at its turn.
    other = native.add_weights(native_layers(_in_another_order(layers)))
    plain = native.add_mask(base, [])
    masks = {"copy": native.add_mask(other, [])}
    for name, share in zip(("thin", "thick"), _PROBES, strict=True):
        masks[name] = native.add_mask(base, native_patches(_synthetic(layers, share)))
    logits = np.zeros((1, model.config.vocab), np.float32)
    steps = {name: _step(native, plain, mask, logits) for name, mask in masks.items()}
    best = dict.fromkeys(steps, float("inf"))
    for _ in range(_ROUNDS):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            best[name] = min(best[name], time.perf_counter() - begin)
    return best


def _step(
    native: Decoder, plain: int, mask: int, logits: np.ndarray[Any, Any]
) -> Callable[[], object]:
    def ints(*values: int) -> np.ndarray[Any, np.dtype[np.int32]]:
        return np.array(values, np.int32)

    step = Step(
        tokens=ints(*[0] * BATCH_TOKENS),
        token_begin=ints(*range(BATCH_TOKENS + 1)),
        start=ints(*[0] * BATCH_TOKENS),
        pages=np.arange(BATCH_TOKENS, dtype=np.int32)[:, None],
        masks=ints(*[plain] * (BATCH_TOKENS // 2), *[mask] * (BATCH_TOKENS // 2)),
        logit_rows=ints(),
    )
    return lambda: native.step(step, logits)


def _some_layers(layers: list[list[PackedWeights]]) -> list[list[PackedWeights]]:
    """The first layers, up to `_WORK_BYTES`, and at least two."""
    size, count = 0, 0
    while count < len(layers) and (count < 2 or size < _WORK_BYTES):
        size += sum(weights.data.nbytes for weights in layers[count])
        count += 1
    return layers[:count]


def _in_another_order(layers: list[list[PackedWeights]]) -> list[list[PackedWeights]]:
    """Turned by half, layers with experts and layers without each among themselves."""
    shapes = [tuple((weights.n, weights.k) for weights in layer) for layer in layers]
    turned = list(layers)
    for kind in set(shapes):
        places = [place for place, shape in enumerate(shapes) if shape == kind]
        half = len(places) // 2
        for place, other in zip(places, places[half:] + places[:half], strict=True):
            turned[place] = layers[other]
    return turned


def _synthetic(layers: list[list[PackedWeights]], share: float) -> LayerPatches:
    """Patches of `share` of every sparse layer's groups, which change nothing."""
    made: dict[tuple[int, int], AnyPatch] = {}
    for weights in (w for layer in layers for w in layer):
        shape = weights.n, weights.k
        if shape not in made:
            nothing = _nothing_lowbit if weights.layout.lowbit else _nothing
            made[shape] = nothing(*shape, share)
    return [[made[w.n, w.k] if w.layout.sparse else None for w in layer] for layer in layers]


def _nothing(n: int, k: int, share: float) -> Patch:
    row_start, groups = _changes(n, k, share)
    return Patch(
        n=n,
        k=k,
        row_start=row_start,
        group=groups,
        codes=np.zeros(groups.size, np.uint8),
        delta=np.zeros((groups.size, 4), BF16),
    )


def _nothing_lowbit(n: int, k: int, share: float) -> LowbitPatch:
    row_start, groups = _changes(n, k, share)
    # One input of a group goes and another comes, mostly.
    place = np.stack([4 * groups, (4 * groups + 1) | REMOVES], axis=1).reshape(-1)
    return LowbitPatch(n, k, 2 * row_start, place, np.zeros(place.size, np.int8))


def _changes(n: int, k: int, share: float) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Random groups of four: where each row's begin, and the groups."""
    places = np.flatnonzero(np.random.default_rng(0).random(n * k // 4) < share)
    counts = np.bincount(places // (k // 4), minlength=n)
    row_start = np.concatenate(([0], np.cumsum(counts))).astype(np.uint32)
    return row_start, (places % (k // 4)).astype(np.uint32)
