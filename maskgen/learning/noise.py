"""Counter-based noise, so that any pass can draw the same numbers again without storing them.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11), one call per
group of four weights. The counter is (group, micro-batch, step, layer) and the key is the seed:
recomputation under activation checkpointing, a resumed run and a run spread over other ranks all
see the noise that an uninterrupted single process sees. `maskgen/csrc/noise.h` is the same
function.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF
_ROUNDS = 10
_CALL_SHIFT = 24  # micro-batches of a step are far fewer


@dataclass(frozen=True, slots=True)
class NoiseKey:
    """What one layer's draw depends on.

    Attributes:
        seed: 64 bits.
        step: optimiser step.
        micro_batch: index of the micro-batch within the step, counted over all ranks.
        layer: `layer_number` of the layer's name.
    """

    seed: int
    step: int
    micro_batch: int
    layer: int


def layer_number(name: str) -> int:
    """32 bits from a layer's name: stable when other layers are excluded or added."""
    return zlib.crc32(name.encode())


def philox(counter: tuple[Tensor, int, int, int], seed: int) -> tuple[Tensor, ...]:
    """Four words of 32 bits for each counter, as int64.

    Args:
        counter: the first word is an int64 tensor of any shape, the others are the same for all.
        seed: the 64-bit key, low word first.
    """
    c0 = counter[0]
    c1, c2, c3 = (torch.full_like(c0, word) for word in counter[1:])
    k0, k1 = seed & _LOW, (seed >> 32) & _LOW
    for _ in range(_ROUNDS):
        # int64 wraps around, which leaves the 64 bits of the unsigned product.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = ((p1 >> 32) & _LOW) ^ c1 ^ k0
        c2 = ((p0 >> 32) & _LOW) ^ c3 ^ k1
        c1, c3 = p1 & _LOW, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def _words(
    rows: int, groups: int, key: NoiseKey, device: torch.device, call: int = 0
) -> tuple[Tensor, ...]:
    group = torch.arange(rows * groups, dtype=torch.int64, device=device).view(rows, groups)
    second = key.micro_batch | call << _CALL_SHIFT
    return philox((group & _LOW, second, key.step, key.layer), key.seed)


def _gumbel(bits: Tensor, width: int) -> Tensor:
    uniform = (bits.float() + 0.5) * 2.0**-width
    return -torch.log(-torch.log(uniform))


def six_gumbels(rows: int, groups: int, key: NoiseKey, device: torch.device) -> Tensor:
    """(rows, 6, groups) standard Gumbel noise from 21-bit uniforms, one Philox call per group."""
    w0, w1, w2, w3 = _words(rows, groups, key, device)
    bits = [w >> 11 for w in (w0, w1, w2, w3)]
    bits.append(((w0 & 0x7FF) << 10) | ((w1 & 0x7FF) >> 1))
    bits.append(((w2 & 0x7FF) << 10) | ((w3 & 0x7FF) >> 1))
    return _gumbel(torch.stack(bits, dim=1), 21)


def gumbels(rows: int, planes: int, groups: int, key: NoiseKey, device: torch.device) -> Tensor:
    """(rows, planes, groups) standard Gumbel noise, for as many logits as a group has.

    Six planes are `six_gumbels`, and others 23-bit uniforms from as many Philox calls as they need:
    four planes, one call, are what the native kernels draw.
    """
    if planes == 6:
        return six_gumbels(rows, groups, key, device)
    calls = range(-(-planes // 4))
    words = [word for call in calls for word in _words(rows, groups, key, device, call)]
    return _gumbel(torch.stack([word >> 9 for word in words[:planes]], dim=1), 23)


def four_gumbels(rows: int, groups: int, key: NoiseKey, device: torch.device) -> Tensor:
    """(rows, 4, groups) standard Gumbel noise from 23-bit uniforms, one Philox call per group."""
    return gumbels(rows, 4, groups, key, device)
