"""Times of products by shape, tokens and arm, and what bandwidth they reach."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.gpu.arms import ARMS, GpuArm, Prepared, Product
from benchmarks.gpu.masks import random_codes
from benchmarks.gpu.timing import Call, Timer, first_line

SHAPES = (
    (6144, 4096),
    (4096, 4096),
    (28672, 4096),
    (4096, 14336),
    (10240, 8192),
    (8192, 8192),
    (57344, 8192),
    (8192, 28672),
)
"""Llama-3 8B's and 70B's: query, key and value fused, output, gate and up fused, down."""
TOKEN_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

Say = Callable[[str], object]


@dataclass(frozen=True)
class Layers:
    """Copies of a random layer, in the form of every arm."""

    n: int
    k: int
    prepared: dict[str, list[Prepared]]


@dataclass
class SpeedTable:
    """What was measured.

    Attributes:
        rows: n, k, tokens, arm, values, ms, gbps.
        missing: arm -> why it has no time, of the first shape where it failed.
        left_out: shapes for which no time was left.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def measure_speed(
    shapes: Sequence[tuple[int, int]],
    token_counts: Sequence[int],
    device: torch.device,
    timer: Timer,
    *,
    read_at_once: int,
    deadline: float,
    say: Say,
    arms: Sequence[GpuArm] = ARMS,
) -> SpeedTable:
    """All rows, shape by shape.

    Args:
        shapes: (n, k) of the layers.
        token_counts: numbers of tokens.
        device: where to multiply.
        timer: how times are taken.
        read_at_once: bytes that the copies of a layer must exceed, so that no cache holds them.
        deadline: of `time.monotonic()`, after which no shape is begun.
        say: gets a line per shape.
        arms: what is compared.
    """
    table = SpeedTable()
    for n, k in shapes:
        if time.monotonic() > deadline:
            table.left_out.append(f"{n}x{k}")
            continue
        layers = _prepare(n, k, device, read_at_once, arms, table.missing)
        for tokens in token_counts:
            _measure_tokens(table, layers, tokens, device, timer, arms)
        timer.synchronise()
        say(f"{n}x{k}: {sum(1 for row in table.rows if (row['n'], row['k']) == (n, k))} times")
    return table


def read_bandwidth(device: torch.device, timer: Timer, size: int = 1 << 30) -> float:
    """Bytes a second that the memory gives and takes in a copy of `size` bytes."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    times, failures = timer.times({"copy": lambda i: target.copy_(source)}, copies=1)
    if failures:
        raise RuntimeError(f"a copy of {size} bytes failed: {failures['copy']}")
    return 2 * size / times["copy"]


def _prepare(
    n: int,
    k: int,
    device: torch.device,
    read_at_once: int,
    arms: Sequence[GpuArm],
    missing: dict[str, str],
) -> Layers:
    generator = torch.Generator(device).manual_seed(n + k)
    copies = 1 + read_at_once // (n * k * 9 // 8)
    prepared: dict[str, list[Prepared]] = {arm.name: [] for arm in arms}
    for copy in range(copies):
        weight = torch.randn(n, k, device=device, dtype=torch.float32, generator=generator)
        weight = (weight * 0.02).to(torch.bfloat16)
        codes = random_codes(n, k, device, seed=copy)
        for arm in arms:
            if arm.name in missing:
                continue
            try:
                prepared[arm.name].append(arm.prepare(weight, codes))
            except Exception as error:  # this torch or GPU lacks it, and the report says so
                missing[arm.name] = first_line(error)
    return Layers(n, k, {name: found for name, found in prepared.items() if len(found) == copies})


def _one_of(products: Sequence[Product]) -> Call:
    return lambda i: products[i]()


def _measure_tokens(
    table: SpeedTable,
    layers: Layers,
    tokens: int,
    device: torch.device,
    timer: Timer,
    arms: Sequence[GpuArm],
) -> None:
    generator = torch.Generator(device).manual_seed(tokens)
    x = torch.randn(tokens, layers.k, device=device, generator=generator).to(torch.bfloat16)
    wanted = [arm for arm in arms if tokens <= arm.most_tokens and arm.name not in table.missing]
    calls: dict[str, Call] = {}
    for arm in wanted:
        try:
            products = [prepared(x) for prepared in layers.prepared[arm.name]]
        except Exception as error:
            table.missing[arm.name] = first_line(error)
            continue
        calls[arm.name] = _one_of(products)
    times, failures = timer.times(calls, len(next(iter(layers.prepared.values()))))
    table.missing.update(failures)
    for arm in wanted:
        if arm.name in times:
            read = layers.n * layers.k * arm.bytes_a_weight
            table.rows.append(
                {
                    "n": layers.n,
                    "k": layers.k,
                    "tokens": tokens,
                    "arm": arm.name,
                    "values": arm.values,
                    "ms": times[arm.name] * 1e3,
                    "gbps": read / times[arm.name] / 1e9,
                }
            )
