"""Do two comparisons differ beyond noise?

Every arm and load that both folders have is compared in four figures, block by block: the ratio to
the reference arm in the same repeat, tokens per second, and the medians of TTFT and TPOT. Their
logarithms are compared by Student's t with a common variance, and the p values adjusted for their
number by Holm's method (Scandinavian Journal of Statistics 6, 1979), so that a CI job that compares
the same thing a hundred times is wrong in five of them at most.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.serve.folder import ServeFolder
from loadtests.blocks import Block, LoadPoint
from loadtests.bootstrap import CONFIDENCE

FIGURES = ("ratio", "tokens_per_s", "ttft_p50_ms", "tpot_p50_ms")
_LESS_IS_BETTER = ("ttft_p50_ms", "tpot_p50_ms")


class IncomparableError(ValueError):
    """Two folders of which nothing can be said."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class ServeChange:
    """One figure of one arm at one load, in both folders.

    Attributes:
        arm: the arm.
        point: the load.
        figure: one of `FIGURES`.
        first, second: geometric means over the blocks of either folder.
        change: second / first.
        low, high: 95 % interval of the change, by itself.
        p: adjusted for all that was compared.
        beyond_noise: whether p is below 0.05 and the change beyond the tolerance.
        worse: whether it is, and for the worse.
    """

    arm: str
    point: LoadPoint
    figure: str
    first: float
    second: float
    change: float
    low: float
    high: float
    p: float
    beyond_noise: bool
    worse: bool


def changes_between(first: ServeFolder, second: ServeFolder, tolerance: float) -> list[ServeChange]:
    """Compare what both folders have.

    Args:
        first: the folder to compare with.
        second: the folder in question.
        tolerance: changes up to this share matter to nobody, however sure.

    Raises:
        IncomparableError: a folder is void, from another machine, of other requests, or has no two
            repeats; or they share no arm and load.
    """
    if not 0 <= tolerance < 1:
        raise IncomparableError(f"tolerance {tolerance}: must be a share from 0, below 1")
    for folder in (first, second):
        _check_folder(folder)
    _check_alike(first, second)
    pairs = [
        (key, figures) for key, figures in _paired(first, second) if min(map(len, figures)) > 1
    ]
    if not pairs:
        raise IncomparableError(f"{first.path} and {second.path} share no arm and load")
    tested = [_test(*figures) for _, figures in pairs]
    adjusted = _holm([p for *_, p in tested])
    return [
        _change(key, means, interval, p, tolerance)
        for (key, _), (means, interval, _), p in zip(pairs, tested, adjusted, strict=True)
    ]


def _check_folder(folder: ServeFolder) -> None:
    if folder.result["problems"]:
        raise IncomparableError(f"{folder.path} is void: {folder.result['problems'][0]}")
    if folder.result["plan"]["repeats"] < 2:
        raise IncomparableError(
            f"{folder.path} has one repeat, so nothing says how large its noise is: measure with "
            "--repeats 3 or more"
        )


def _check_alike(first: ServeFolder, second: ServeFolder) -> None:
    for name in ("machine_class", "reference"):
        one, other = first.result[name], second.result[name]
        if one != other:
            raise IncomparableError(f"the folders have unlike {name}: {one} and {other}")
    for name in ("cpu", "cores"):
        one, other = (folder.result["machine"][name] for folder in (first, second))
        if one != other:
            raise IncomparableError(f"the folders are of unlike machines: {name} {one} and {other}")
    for name in ("endpoint", "threads", "mask_mix"):
        one, other = (folder.result["plan"][name] for folder in (first, second))
        if one != other:
            raise IncomparableError(f"the folders have unlike {name}: {one} and {other}")


_Key = tuple[str, LoadPoint, str]
_Figures = tuple[list[float], list[float]]


def _paired(first: ServeFolder, second: ServeFolder) -> Iterator[tuple[_Key, _Figures]]:
    arms = list(dict.fromkeys(block.arm for block in first.blocks))
    points = list(dict.fromkeys(block.point for block in first.blocks))
    for point in points:
        for arm in arms:
            for figure in FIGURES:
                yield (
                    (arm, point, figure),
                    (_values(first, arm, point, figure), _values(second, arm, point, figure)),
                )


def _values(folder: ServeFolder, arm: str, point: LoadPoint, figure: str) -> list[float]:
    """One figure of every repeat, empty where there is none."""
    own = _by_repeat(folder.blocks, arm, point)
    if figure != "ratio":
        found = [_figure(block, figure) for block in own.values()]
        return [value for value in found if value]
    reference: str = folder.result["reference"]
    if arm == reference:
        return []
    baseline = _by_repeat(folder.blocks, reference, point)
    return [
        block.summary.tokens_per_s / baseline[repeat].summary.tokens_per_s
        for repeat, block in own.items()
        if repeat in baseline
    ]


def _by_repeat(blocks: Sequence[Block], arm: str, point: LoadPoint) -> Mapping[int, Block]:
    return {b.repeat: b for b in blocks if b.arm == arm and b.point == point}


def _figure(block: Block, figure: str) -> float | None:
    if figure == "tokens_per_s":
        return block.summary.tokens_per_s
    latencies: dict[str, float] = getattr(block.summary, figure.replace("_p50", ""))
    return latencies.get("p50")


_Tested = tuple[tuple[float, float], tuple[float, float], float]


def _test(first: Sequence[float], second: Sequence[float]) -> _Tested:
    """Geometric means, the interval of the second over the first, and p."""
    from scipy import stats

    logs = [[math.log(value) for value in values] for values in (first, second)]
    means = [statistics.fmean(values) for values in logs]
    freedom = len(first) + len(second) - 2
    squares = sum(
        (value - mean) ** 2 for values, mean in zip(logs, means, strict=True) for value in values
    )
    variance = squares / freedom if freedom else math.inf
    error = math.sqrt(variance * (1 / len(first) + 1 / len(second)))
    change = means[1] - means[0]
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom)) * error if error else 0.0
    p = 2 * float(stats.t.sf(abs(change) / error, freedom)) if error else float(change == 0)
    geometric = math.exp(means[0]), math.exp(means[1])
    return geometric, (math.exp(change - half), math.exp(change + half)), p


def _holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values, in the same order."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted


def _change(
    key: _Key, means: tuple[float, float], interval: tuple[float, float], p: float, tolerance: float
) -> ServeChange:
    arm, point, figure = key
    change = means[1] / means[0]
    beyond = p < 1 - CONFIDENCE and abs(math.log(change)) > -math.log(1 - tolerance)
    worse = beyond and (change > 1 if figure in _LESS_IS_BETTER else change < 1)
    return ServeChange(arm, point, figure, *means, change, *interval, p, beyond, worse)
