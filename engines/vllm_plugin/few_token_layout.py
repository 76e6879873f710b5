"""How the few-token kernels read a 2:4 layer: 9 bits where a dense bf16 weight has 16.

    pairs   int32 (N', G')    the two kept bf16 weights of a group, the first in the low half
    shifts  int32 (N', G'/8)  a nibble per group: bits 0 and 1 are the place of the first kept
                              weight, bits 2 and 3 are three minus the place of the second

Rows are padded to N' and groups to G' = K'/4 with zeros, so that a kernel needs no mask on what it
reads most. The nibbles of 128 groups lie in 16 words as the kernels take them: word j holds groups
j, 16 + j, ..., 112 + j, the first in its lowest nibble. So a word is loaded once, by the thread
that also loads the eight pairs it speaks of, and both loads are 16 bytes a thread.

The nibble is what the kernels shift by, in place of the placement code of the checkpoint: the four
inputs of a group are 64 bits, which `>> 16 * first` and `<< 16 * (3 - second)` bring in place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engines.errors import EngineDirectoryError

WORDS = 16
"""Words of shifts that a kernel takes at once."""
GROUPS = 8 * WORDS
"""Groups that they cover."""
ROWS = 32
"""Rows are padded to a multiple of this."""

_PLACES = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))


@dataclass(frozen=True)
class FewTokenWeight:
    """One (n, k) layer for `engines.vllm_plugin.triton_kernel`; see the module."""

    pairs: torch.Tensor
    shifts: torch.Tensor
    n: int
    k: int

    @property
    def nbytes(self) -> int:
        """Bytes that a product reads of it."""
        return self.pairs.nbytes + self.shifts.nbytes


def pack_few_token(kept: torch.Tensor, codes: torch.Tensor) -> FewTokenWeight:
    """(n, k/2) bf16 kept values and (n, k/8) bytes of codes, on any device.

    Raises:
        EngineDirectoryError: a code is no placement.
    """
    n, groups = len(kept), kept.shape[1] // 2
    rows, columns = -(-n // ROWS) * ROWS, -(-groups // GROUPS) * GROUPS
    pairs = kept.new_zeros(rows, columns, dtype=torch.int32)
    pairs[:n, :groups] = kept.contiguous().view(torch.int32)
    moves = torch.tensor([a | (3 - b) << 2 for a, b in _PLACES], device=codes.device)
    nibbles = codes.new_zeros(rows, columns, dtype=torch.int64)
    nibbles[:n, :groups] = moves[_checked_codes(codes)]
    # (rows, steps, nibble, word); the sum is an or, since no two nibbles share a bit.
    by_word = nibbles.reshape(rows, -1, 8, WORDS)
    places = 4 * torch.arange(8, device=codes.device)[:, None]
    shifts = (by_word << places).sum(2).reshape(rows, -1)
    signed = torch.where(shifts >= 2**31, shifts - 2**32, shifts)
    return FewTokenWeight(pairs, signed.to(torch.int32), n, 4 * groups)


def unpack_kept(kept: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """(n, k/2) kept values and (n, k/8) bytes of codes -> (n, k), on any device.

    Raises:
        EngineDirectoryError: a code is no placement.
    """
    found = _checked_codes(codes)
    places = torch.tensor(_PLACES, device=codes.device)[found]
    dense = kept.new_zeros(*found.shape, 4)
    dense.scatter_(-1, places, kept.reshape(len(found), -1, 2))
    return dense.reshape(len(found), -1)


def _checked_codes(codes: torch.Tensor) -> torch.Tensor:
    """(n, k/8) bytes -> (n, k/4) int64."""
    nibbles = torch.stack((codes & 15, codes >> 4), dim=-1).reshape(len(codes), -1)
    if bool((nibbles > 5).any()):
        raise EngineDirectoryError(
            f"a placement code is {int(nibbles.max())}, expected 0 to 5: the checkpoint is damaged"
        )
    return nibbles.long()
